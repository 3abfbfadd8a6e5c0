"""States of insertion networks and their labels, against every way there is."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from outpace.models.nar import stages
from outpace.models.nar.planner import shared_order


def _neighbours(places: tuple[int, ...]) -> bool:
    return any(b - a == 1 for a, b in itertools.pairwise(places))


@pytest.mark.parametrize("seed", range(30))
def test_what_a_stage_drops_is_the_best_set_without_neighbours(seed: int) -> None:
    draw = random.Random(seed)
    size = draw.randint(0, 9)
    weights, fixed = [draw.random() + 0.01 for _ in range(size)], [draw.random() < 0.3 for _ in range(size)]
    found = stages.droppable(weights, fixed)
    sets = (chosen for num in range(size + 1) for chosen in itertools.combinations(range(size), num))
    allowed = [chosen for chosen in sets if not _neighbours(chosen) and not any(fixed[at] for at in chosen)]
    best = max(sum(weights[at] for at in chosen) for chosen in allowed)
    mine = tuple(at for at in range(size) if found[at])
    assert mine in allowed and sum(weights[at] for at in mine) == pytest.approx(best)


@pytest.mark.parametrize("size", [1, 7, 40, 300])
def test_stages_grow_by_one_token_a_slot_and_few_suffice(size: int) -> None:
    draw = random.Random(size)
    fixed = [draw.random() < 0.1 for _ in range(size)]
    found = stages.stages([draw.random() for _ in range(size)], fixed)
    assert found[0] == list(range(size)) and found[-1] == [at for at in range(size) if fixed[at]]
    # A stage leaves out a third of what is free at least: two that stay beside each other would not be the best set.
    gap = max(len(list(run)) for free, run in itertools.groupby([not one for one in fixed]) if free)
    assert len(found) - 1 <= math.log(gap + 1) / math.log(1.5) + 1
    text = list(range(100, 100 + size))
    for fuller, state in itertools.pairwise(found):
        tokens = [text[at] for at in state]
        labels = stages.insertions(text, state, fuller, nothing=-1)
        assert [slot for slot, _, _ in labels] == list(range(len(state) + 1))
        for slot, token, _ in reversed(labels):
            tokens[slot:slot] = [] if token == -1 else [token]
        assert tokens == [text[at] for at in fuller]


def test_a_slot_stays_empty_only_where_nothing_is_missing() -> None:
    draw = random.Random(4)
    for _ in range(20):
        size = draw.randint(1, 12)
        given = [at for at in range(size) if draw.random() < 0.3]
        found = stages.grown([draw.random() for _ in range(size)], given)
        assert found[0] == list(range(size)) and found[-1] == given
        for fuller, state in itertools.pairwise(found):
            labels = stages.insertions(list(range(size)), state, fuller, nothing=-1)
            for (_, token, _), missing in zip(labels, stages.spans(state, size), strict=True):
                assert (token == -1) == (len(missing) == 0) and (token == -1 or token in missing)


def test_targets_lie_around_the_middle_of_a_slot() -> None:
    labels = stages.spread([5, 6, 7, 8, 9], [3], nothing=99)
    weights = {token: weight for slot, token, weight in labels if slot == 0}
    assert weights[6] > weights[5] == weights[7] and sum(weights.values()) == pytest.approx(1)
    assert weights[6] / weights[5] == pytest.approx(math.e)
    assert [label for label in labels if label[0] == 1] == [(1, 9, 1.0)]
    assert stages.spread([5], [0], nothing=99) == [(0, 99, 1.0), (1, 99, 1.0)]


def _fewest(state: tuple[int, ...], text: tuple[int, ...], given: tuple[bool, ...]) -> int | None:
    """Return the fewest edits by trying every set of tokens that stay."""
    best = None
    for stays in itertools.product((False, True), repeat=len(state)):
        if any(known and not stay for known, stay in zip(given, stays, strict=True)):
            continue
        left = [token for token, stay in zip(state, stays, strict=True) if stay]
        tokens = iter(text)
        if all(token in tokens for token in left):
            cost = len(state) + len(text) - 2 * len(left)
            best = cost if best is None else min(best, cost)
    return best


@pytest.mark.parametrize("seed", range(60))
def test_labels_of_edits_are_the_fewest_and_lead_to_the_text(seed: int) -> None:
    draw = random.Random(seed)
    state, text = (tuple(draw.choices(range(3), k=draw.randint(0, 7))) for _ in range(2))
    given = tuple(draw.random() < 0.25 for _ in state)
    stays, missing = stages.edits(state, text, given)
    kept = [token for token, stay in zip(state, stays, strict=True) if stay]
    assert len(missing) == len(kept) + 1 and all(stay for stay, known in zip(stays, given, strict=True) if known)
    cost = _fewest(state, text, given)
    if cost is None:  # the given tokens are not in the text
        assert stays == list(given)
        return
    made = missing[0] + [one for token, more in zip(kept, missing[1:], strict=True) for one in (token, *more)]
    assert tuple(made) == text
    assert stays.count(False) + sum(map(len, missing)) == cost


def test_phrases_are_found_whole_and_in_order() -> None:
    text = [1, 2, 3, 1, 2, 4]
    assert stages.matched([[1, 2], [1], [4]], text) == [0, 1, 3, 5]
    assert stages.matched([[1, 2, 4]], text) == [3, 4, 5]
    assert stages.matched([], text) == [] and stages.matched([[2, 1]], text) is None


def test_a_plan_takes_what_text_and_table_share_in_the_order_of_the_text() -> None:
    assert shared_order([7, 8, 9, 7, 8], [1, 9, 8, 7, 8, 7, 8]) == [2, 1, 0, 4, 3]
    assert shared_order([-1, 5], [5, 5, -1]) == [1]
