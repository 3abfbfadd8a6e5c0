"""One tree from the text and a network: chances against enumeration, and when the network is asked."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

import outpace
from outpace.draft.blend import Branches, Followed, TextOffers, blend, extra, listed
from outpace.draft.suffix import Draft
from outpace.draft.suffix_history import SuffixHistory
from outpace.methods.speculative.trained_drafter import TrainedDrafter
from outpace.run.tree import TokenTree
from outpace.schedule.cost import CostCurve, SeenCurve


def random_tree(draw: random.Random, size: int) -> tuple[list[int], list[int], list[float]]:
    """Return tokens 0 to 2, parents and probabilities; siblings differ, and share what their parent has."""
    tokens, parents, probs = [], list[int](), list[float]()
    for node in range(size):
        above = draw.randint(-1, node - 1)
        taken = [tokens[i] for i in range(node) if parents[i] == above]
        left = (probs[above] if above >= 0 else 1.0) - sum(probs[i] for i in range(node) if parents[i] == above)
        free = [token for token in range(3) if token not in taken]
        if free:
            tokens.append(draw.choice(free))
            parents.append(above)
            probs.append(left * draw.uniform(0.1, 0.9))
        else:
            break
    return tokens, parents, probs


def paths(tokens: list[int], parents: list[int]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, above in zip(tokens, parents, strict=True):
        found.append((*(found[above] if above >= 0 else ()), token))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_the_tree_is_the_mixture_of_both(seed: int) -> None:
    """Of every path that either has: the text's chance of it, and the network's times what the text leaves open."""
    draw = random.Random(seed)
    chain = [draw.randrange(3) for _ in range(draw.randint(0, 4))]
    chances = list(itertools.accumulate((draw.uniform(0.3, 1.0) for _ in chain), lambda a, b: a * b))
    tokens, parents, probs = random_tree(draw, 7)
    trust = draw.uniform(0.2, 1.0)
    found = blend(chain, chances, tokens, parents, probs, trust)
    left = 1 - chances[0] if chances else 1.0
    said = dict(zip(paths(tokens, parents), probs, strict=True))
    text = {tuple(chain[: n + 1]): chance for n, chance in enumerate(chances)}
    own = paths(found.tokens, found.parents)
    assert len(set(own)) == len(own) and set(own) == set(said) | set(text)
    for path, chance, hope in zip(own, found.chances, found.hopes, strict=True):
        assert chance == pytest.approx(text.get(path, 0.0) + left * trust * said.get(path, 0.0))
        assert hope == pytest.approx(text.get(path, 0.0) + left * said[path] if path in said else 0.0)
        assert len(path) == 1 or chance <= found.chances[own.index(path[:-1])] + 1e-12
    assert sum(chance for path, chance in zip(own, found.chances, strict=True) if len(path) == 1) <= 1 + 1e-9


def test_nodes_are_kept_in_another_order() -> None:
    tree = Branches([5, 6, 7], [-1, 0, -1], [0.4, 0.2, 0.5], [0.0, 0.1, 0.2])
    assert tree.keep([2, 0, 1]) == Branches([7, 5, 6], [-1, -1, 1], [0.5, 0.4, 0.2], [0.2, 0.0, 0.1])
    assert tree.keep([]) == Branches([], [], [], []) and tree.copy() == tree and tree.copy() is not tree


def test_what_the_text_offers_is_believed_as_it_came_true() -> None:
    followed, draft = Followed(), Draft([1, 2, 3, 4], [-1, 0, 1, 2], [1.0, 1.0, 0.5, 0.5], match_len=3)
    before = followed.chances(draft)
    assert before == sorted(before, reverse=True) and 0.7 < before[0] < 0.9
    assert before[2] < 0.5 * before[1]  # two tokens had followed there: its share, and less
    for _ in range(100):
        followed.learn(draft, [9])
    assert followed.chances(draft)[0] < 0.05
    assert followed.chances(Draft([1], [-1], [1.0], 20)) == Followed().chances(Draft([1], [-1], [1.0], 20))
    for _ in range(100):
        followed.learn(draft, [1, 2, 3, 4])
    assert followed.chances(draft)[1] > 0.9 and max(followed.chances(draft)) <= 1
    other = followed.copy()
    other.learn(draft, [9])
    assert other.chances(draft) != followed.chances(draft)


def test_the_network_is_asked_where_the_text_leaves_enough_open() -> None:
    own = TextOffers(SuffixHistory(32, 0))
    own.offer([1, 2, 3, 4, 5, 6, 7, 8, 9], 8)
    assert own.draft.tokens == [] and own.left == 1 and own.asks(0.5)
    own.offer([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5], 3)
    assert own.draft.tokens == [6, 7, 8] and own.left < 0.3 and not own.asks(0.3)
    nothing = TextOffers(None)
    nothing.offer([1, 1, 1, 1], 8)
    assert nothing.draft.tokens == []
    for _ in range(30):
        nothing.asked(0.0)
    waits = [next(n for n in itertools.count() if nothing.asks(price)) for price in (0.1, 5.0)]
    assert 2 <= waits[0] < 100 and waits[1] < 200  # it is tried again some day, also where it is dear


@pytest.mark.parametrize("seed", range(10))
def test_what_nodes_bring_beyond_their_cost(seed: int) -> None:
    draw = random.Random(seed)
    chances, curve = [draw.random() for _ in range(6)], CostCurve((1, 2, 5, 9), (1.0, 1.2, 1.3, 4.0))
    most = 0.0
    for size in range(7):
        for some in itertools.combinations(chances, size):
            most = max(most, sum(some) - 2 * (curve.seconds_for_all(2 + size) / curve.seconds_for_all(2) - 1))
    assert extra(chances, curve.seconds_for_all, 2) == pytest.approx(most)


def test_padding_is_no_node() -> None:
    score = torch.tensor([[-0.5, -1.0], [-0.25, -float("inf")]], dtype=torch.float64)
    tree = TokenTree(torch.tensor([[4, 5], [6, 0]]), torch.tensor([[-1, 0], [-1, -1]]), [2, 1], score)
    tokens, parents, probs = listed(tree)
    assert tokens == [[4, 5], [6]] and parents == [[-1, 0], [-1]]
    assert probs[1] == pytest.approx([0.7788], abs=1e-4)


def test_a_curve_is_corrected_by_what_was_seen() -> None:
    given = CostCurve((1, 8, 16, 32), (1.0, 1.1, 1.6, 3.0))
    seen = SeenCurve(given)
    for _ in range(20):
        seen.add(1, 0.010)
        seen.add(8, 0.020)
    ratio = [seen.curve.seconds_for_all(size) / seen.curve.seconds_for_all(1) for size in (1, 4, 8, 16, 32)]
    assert ratio[2] == pytest.approx(2.0, rel=0.1) and ratio == sorted(ratio)
    assert ratio[4] == pytest.approx(3.0, rel=0.1)  # as it was given, since nothing tells
    held = seen.curve
    seen.add(8, 0.0205)
    assert seen.curve is held  # what was worked out from it still holds
    assert seen.rows([0]) is seen and seen.join([seen, SeenCurve(given)]) is seen


def test_the_text_alone_is_drafted_from_where_it_repeats() -> None:
    """The draft model of stories is asked less often where a text repeats itself; texts are plain decoding's."""
    lm = outpace.load("stories")
    prompt = "Tom had a red ball. " * 6
    given = {"max_tokens": 32, "ignore_eos": True}
    plain = lm.generate(prompt, method="autoregressive", **given)
    asked = {}
    for has_text in (True, False):
        result = lm.generate(prompt, method=TrainedDrafter(draft="stories-draft", has_text=has_text), **given)
        assert result.tokens == plain.tokens
        asked[has_text] = result.usage.num_accepted, result.usage.num_steps
    assert asked[True][0] > 0
