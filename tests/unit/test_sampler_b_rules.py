"""The rules of prophet, ccd, ete and lrd, and adaptive blocks, against slow formulas of their own."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from outpace.canvas import Canvas, CanvasRow, FixedBlocks, Reading
from outpace.canvas.adaptive_blocks import AdaptiveBlocks
from outpace.canvas.reach import Reach
from outpace.canvas.rules import Ranked
from outpace.canvas.rules.ccd import Coherent
from outpace.canvas.rules.ete import Explore, Tentative
from outpace.canvas.rules.lrd import Belief, Refined, mixture, movement
from outpace.canvas.rules.prophet import EarlyCommit, mean_gap
from outpace.sampling import Sampling
from outpace.sampling.sampler import Sampler

VOCAB, MASK = 7, 6
CANVAS = Canvas(MASK)


def make_row(size: int = 8, prompt: int = 2, end: int = 6, ends: tuple[int, ...] = ()) -> CanvasRow:
    """A row of `prompt` given places and masks behind them, its block in work ending at `end`."""
    row = CanvasRow.begin(list(range(prompt)), [-1] * (size - prompt), CANVAS, ends)
    return replaced(row, end=end)


def replaced(row: CanvasRow, **changes: Any) -> CanvasRow:
    return replace(row, **changes)


def make_reading(logits: torch.Tensor, places: list[int], drawn: list[int] | None = None) -> Reading:
    """A reading of such logits; greedy unless the draws are given."""
    tokens = logits.argmax(-1).tolist() if drawn is None else drawn
    return Reading(np.array(places), np.array(tokens, dtype=np.int64), logits, Sampler(Sampling(), [1]), 0)


def random_logits(count: int, seed: int, scale: float = 2.0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, VOCAB, generator=source, dtype=torch.float64) * scale
    logits[:, MASK] = float("-inf")
    return logits


def laws(logits: torch.Tensor) -> list[list[float]]:
    """Softmax, by hand."""
    rows = [[math.exp(value) for value in row] for row in logits.tolist()]
    return [[value / sum(row) for value in row] for row in rows]


# Prophet


@pytest.mark.parametrize("seed", range(5))
def test_the_mean_gap_by_hand(seed: int) -> None:
    logits = random_logits(4, seed)
    region = np.array([True, False, True, True])
    gaps = []
    for index in (0, 2, 3):
        best, second = sorted(logits[index].tolist(), reverse=True)[:2]
        gaps.append(best - second)
    assert mean_gap(make_reading(logits, [2, 3, 4, 5]), region) == pytest.approx(sum(gaps) / 3)


@pytest.mark.parametrize(("decided", "stage"), [(0, 0), (1, 0), (2, 1), (3, 2)])
def test_the_gap_asked_for_falls_as_the_block_fills(decided: int, stage: int) -> None:
    row = make_row(size=10, end=6)  # a block of four places
    row.tokens[2 : 2 + decided] = 0
    places = list(range(2 + decided, 6))
    reading = make_reading(random_logits(len(places), 3), places)
    gap = mean_gap(reading, np.ones(len(places), dtype=np.bool_))
    above, below = [math.inf] * 3, [math.inf] * 3
    above[stage], below[stage] = gap + 1e-9, gap - 1e-9
    plain = Ranked().choose(reading, row, row.memo).writes
    assert (EarlyCommit(Ranked(), tuple(above)).choose(reading, row, row.memo).writes == plain).all()  # type: ignore[arg-type]
    assert EarlyCommit(Ranked(), tuple(below)).choose(reading, row, row.memo).writes.all()  # type: ignore[arg-type]


def test_a_canvas_wide_gap_commits_later_blocks_too_and_a_blocks_gap_does_not() -> None:
    row = make_row(size=10, end=4)
    reading = make_reading(random_logits(8, 1), list(range(2, 10)))
    assert EarlyCommit(Ranked(), (0.0, 0.0, 0.0), is_whole=True).choose(reading, row, row.memo).writes.all()
    assert (
        EarlyCommit(Ranked(), (0.0, 0.0, 0.0)).choose(reading, row, row.memo).writes.tolist()
        == [True, True] + [False] * 6
    )


def test_what_the_model_cannot_see_counts_as_undecided() -> None:
    row = replaced(make_row(size=10, end=6), base=2)
    row.tokens[2:4] = 0  # two of the four visible places are decided, four more lie beyond
    reading = make_reading(random_logits(2, 1), [4, 5])
    region = np.ones(2, dtype=np.bool_)
    assert EarlyCommit(Ranked(), (0, 0, 0), is_whole=True).progress(reading, row, region) == pytest.approx(2 / 8)
    assert EarlyCommit(Ranked(), (0, 0, 0)).progress(reading, row, region) == pytest.approx(2 / 4)


# Coherent contextual decoding


def slow_ccd(
    steps: list[torch.Tensor], places: list[list[int]], end: int, history: int, top: int
) -> tuple[set[int], set[int]]:
    """The places that the last of several greedy steps writes, one by one and adaptively."""
    kept: list[dict[int, list[float]]] = []
    for logits, where in zip(steps, places, strict=True):
        probs = laws(logits)
        inside = [i for i in range(len(where)) if where[i] < end]
        inside.sort(key=lambda i: -max(probs[i]))
        kept.append({where[i]: probs[i] for i in inside[:top]})
    buffer = kept[-history:]
    shared = [place for place in buffer[-1] if all(place in step for step in buffer)]
    if len(buffer) == 1 or not shared:
        best = max(buffer[-1], key=lambda place: max(buffer[-1][place]))
        return {best}, {best}
    drawn = {place: int(np.argmax(buffer[-1][place])) for place in shared}
    mean = {place: sum(step[place][drawn[place]] for step in buffer) / len(buffer) for place in shared}
    best = max(mean, key=lambda place: mean[place])
    agreed = {p for p in shared if len({int(np.argmax(step[p])) for step in buffer}) == 1}
    return {best}, {best} | (agreed if len(buffer) == history else set())


@pytest.mark.parametrize("history", [2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_coherent_choices_by_hand(seed: int, history: int) -> None:
    places = list(range(2, 8))
    first = random_logits(6, seed)
    steps = [first, first + random_logits(6, 50 + seed, 0.7), first + random_logits(6, 90 + seed, 0.7)]
    steps = [step.nan_to_num(neginf=-1e9) for step in steps]
    for is_adaptive in (False, True):
        row, rule = make_row(end=7), Coherent(history, 3, is_adaptive)
        for number, logits in enumerate(steps):
            choice = rule.choose(make_reading(logits, places), row, row.memo)
            wanted = slow_ccd(steps[: number + 1], [places] * (number + 1), 7, history, 3)[is_adaptive]
            assert {places[i] for i in np.flatnonzero(choice.writes)} == wanted
            row = replaced(row, memo=choice.memo, step=row.step + 1)


def test_a_new_block_begins_with_an_empty_buffer() -> None:
    reading = make_reading(random_logits(6, 0), list(range(2, 8)))
    rule = Coherent(2, 4)
    memo = rule.choose(reading, make_row(), None).memo
    fresh = rule.choose(reading, replaced(make_row(), step=0), memo)
    assert fresh.writes.sum() == 1
    assert rule.choose(reading, replaced(make_row(), step=1), memo).writes.sum() == 4


def test_a_draw_that_departs_from_the_steps_is_not_consistent() -> None:
    logits = random_logits(4, 0)
    rule, likeliest = Coherent(2, 4), logits.argmax(-1).tolist()
    other = [likeliest[0], *[(token + 1) % MASK for token in likeliest[1:]]]
    memo = rule.choose(make_reading(logits, [2, 3, 4, 5]), make_row(), None).memo
    again = replaced(make_row(), step=1)
    assert rule.choose(make_reading(logits, [2, 3, 4, 5]), again, memo).writes.sum() == 4
    assert rule.choose(make_reading(logits, [2, 3, 4, 5], other), again, memo).writes.sum() <= 2


# Explore, then exploit


def test_sure_places_are_written_wherever_they_lie_and_no_text_ends_beyond_the_block() -> None:
    row = make_row(end=4, ends=(3,))
    logits = torch.zeros(6, VOCAB, dtype=torch.float64)
    for index, token in [(1, 3), (3, 2), (4, 3)]:  # place 3 ends the text inside the block, place 6 would beyond it
        logits[index, token] = 9.0
    writes = Explore(0.9).choose(make_reading(logits, list(range(2, 8))), row, row.memo).writes
    assert np.flatnonzero(writes).tolist() == [1, 3]


def test_when_nothing_is_sure_the_surest_and_the_widest_behind_decided_places_are_written() -> None:
    row, logits = make_row(size=12, end=10), torch.zeros(6, VOCAB, dtype=torch.float64)
    logits[:, 0] = torch.tensor([0.5, 0.1, 1.0, 0.2, 0.3, 0.0])
    reading = make_reading(logits, [2, 3, 5, 8, 9, 11])  # 2, 5 and 8 follow a decided place; 11 does, beyond the block
    assert np.flatnonzero(Explore(0.9, 0).choose(reading, row, row.memo).writes).tolist() == [2]
    assert np.flatnonzero(Explore(0.9, 1).choose(reading, row, row.memo).writes).tolist() == [2, 3]
    assert np.flatnonzero(Explore(0.9, 9).choose(reading, row, row.memo).writes).tolist() == [0, 2, 3]


def test_candidates_are_the_drawn_token_and_the_likeliest_others() -> None:
    row, logits = make_row(end=7), random_logits(4, 4, 0.1)
    reading = make_reading(logits, [2, 4, 5, 6], [0, 1, 2, 3])  # 2 and 4 follow a decided place
    choice = Explore(0.9, 1, 3).choose(reading, row, row.memo)
    tried = choice.memo
    assert isinstance(tried, Tentative) and choice.writes.sum() == 1 and tried.place in (2, 4)
    index = [2, 4].index(tried.place)
    ranked = sorted(range(MASK), key=lambda token: -float(logits[index, token]))
    assert tried.tokens == (index, *[token for token in ranked if token != index][:2])
    assert tried.log_probs == pytest.approx([math.log(laws(logits)[index][token]) for token in tried.tokens])
    assert not choice.writes[index]
    assert (
        Explore(0.9, 1, 3).choose(make_reading(logits[:2], [2, 4]), row, row.memo).memo is None
    )  # nothing left to compare by


def test_places_beyond_the_block_are_asked_as_far_as_the_reach() -> None:
    row, blocks = make_row(size=20, end=6), FixedBlocks(4)
    assert [Reach(blocks, n).asked(row, CANVAS) for n in (-1, 0, 5, 99)] == [20, 6, 11, 20]
    reading = make_reading(random_logits(1, 0), [2])
    assert Reach(blocks).open(replaced(row, end=2), reading, CANVAS) == 6


# Latent refinement


@pytest.mark.parametrize("seed", range(4))
def test_divergence_by_hand(seed: int) -> None:
    ours, theirs = (torch.tensor(laws(random_logits(3, number))) for number in (seed, seed + 9))

    def moved(mine: int, other: int) -> float:
        pairs = zip(ours[mine].tolist(), theirs[other].tolist(), strict=True)
        return sum(p * math.log(p / q) for p, q in pairs if p > 0)

    now = Belief(np.array([3, 4, 5]), ours, False)
    assert movement(now, Belief(np.array([1, 4, 9]), theirs, False)) == pytest.approx(moved(1, 1), rel=1e-5)
    both = (moved(0, 1) + moved(2, 2)) / 2
    assert movement(now, Belief(np.array([2, 3, 5]), theirs, False)) == pytest.approx(both, rel=1e-5)


def test_beliefs_about_other_places_are_infinitely_far() -> None:
    probs = torch.tensor(laws(random_logits(1, 0)))
    assert movement(Belief(np.array([1]), probs, False), Belief(np.array([2]), probs, False)) == math.inf


@pytest.mark.parametrize("top_p", [0.3, 0.8, 1.0])
def test_mixtures_by_hand(top_p: float) -> None:
    probs = torch.tensor(laws(random_logits(5, 2)))
    share, ids, weights = mixture(probs, 0.4, top_p, 4)
    for index, law in enumerate(probs.double().tolist()):
        entropy = -sum(p * math.log(p) for p in law if p > 0)
        assert float(share[index]) == pytest.approx(0.4 * (1 - entropy / math.log(VOCAB)), abs=1e-6)
        ranked, nucleus, mass = sorted(range(VOCAB), key=lambda v: -law[v]), [], 0.0
        for token in ranked[:4]:
            if mass >= top_p:
                break
            nucleus.append(token)
            mass += law[token]
        found = {int(token): float(w) for token, w in zip(ids[index], weights[index], strict=True) if w > 0}
        assert found == pytest.approx({token: law[token] / mass for token in nucleus})


def test_nothing_is_written_until_the_laws_rest_and_all_is_once_they_settle() -> None:
    rule = Refined(Ranked(), refine=0.1, rounds=5, settle=0.1)
    moving, still = random_logits(4, 1), random_logits(4, 2)
    row, writes = make_row(end=6), []
    # far apart, far apart, at rest: the first token; then (place 2 to 5, less the written one) at rest: all the others
    for logits in (moving, still, still, still):
        choice = rule.choose(make_reading(logits, [2, 3, 4, 5]), row, row.memo)
        writes.append(int(choice.writes.sum()))
        row = replaced(row, memo=choice.memo, step=row.step + 1)
    assert writes == [0, 0, 1, 4]


def test_the_first_phase_ends_after_its_rounds_and_settling_can_be_off() -> None:
    rule = Refined(Ranked(), refine=0.0, rounds=2, settle=0.0)
    row, writes, logits = make_row(end=6), [], random_logits(4, 1)
    for _ in range(5):
        choice = rule.choose(make_reading(logits, [2, 3, 4, 5]), row, row.memo)
        writes.append(int(choice.writes.sum()))
        row = replaced(row, memo=choice.memo, step=row.step + 1)
    assert writes == [0, 0, 1, 1, 1]


# Adaptive blocks


def test_the_surest_delimiter_of_the_window_ends_the_block() -> None:
    row = make_row(size=22, prompt=2, end=2)  # twenty places, so a window of five at a quarter
    logits = torch.zeros(10, VOCAB, dtype=torch.float64)
    for index, value in [(1, 2.0), (3, 3.0), (6, 9.0)]:  # the third lies beyond the window
        logits[index, 5] = value
    logits[0, 1] = 9.0  # surer, but no delimiter
    reading = make_reading(logits, list(range(2, 12)))
    sure = float(reading.confidence[3])
    assert AdaptiveBlocks(8, (5,), sure - 1e-9).open(row, reading, CANVAS) == 6
    assert AdaptiveBlocks(8, (5,), sure + 1e-9).open(row, reading, CANVAS) == 10  # no delimiter: a plain block
    assert AdaptiveBlocks(8, (4,), 0.01).open(row, reading, CANVAS) == 10
    assert AdaptiveBlocks(8, (5,), 0.3, share=0.5).open(row, reading, CANVAS) == 9


def test_a_new_block_asks_for_its_window_and_one_in_work_for_its_end() -> None:
    row = make_row(size=22, prompt=2, end=2)
    assert AdaptiveBlocks(4, (5,)).asked(row, CANVAS) == 7
    assert AdaptiveBlocks(8, (5,)).asked(row, CANVAS) == 10
    assert AdaptiveBlocks(8, (5,)).asked(replaced(row, end=4), CANVAS) == 4
    late = replaced(make_row(size=22, prompt=2), base=20, end=20)
    assert AdaptiveBlocks(8, (5,)).asked(late, CANVAS) == 22


def test_a_block_stays_inside_the_models_own() -> None:
    canvas, row = Canvas(MASK, block_size=4), make_row(size=22, prompt=2, end=2)
    reading = make_reading(random_logits(2, 0), [2, 3])
    blocks = AdaptiveBlocks(8, (5,), 0.3)
    assert blocks.asked(row, canvas) == 4
    assert blocks.open(row, reading, canvas) <= 4
