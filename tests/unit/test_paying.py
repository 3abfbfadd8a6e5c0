"""The tree that pays: held against every choice of nodes, and against what came of earlier hopes."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
import torch

from outpace.draft.paying import Trust, least_worths, paying
from outpace.run.tree import TokenTree
from outpace.schedule.bandit import ArmStats, Bandit, BanditArm
from outpace.schedule.cost import CostCurve


def random_trees(rows: int, most: int, seed: int) -> TokenTree:
    """Trees of different sizes, whose scores fall along every path."""
    draw = random.Random(seed)
    length = [draw.randint(0, most) for _ in range(rows)]
    parent, score = torch.full((rows, most), -1), torch.full((rows, most), float("-inf"), dtype=torch.float64)
    for row, count in enumerate(length):
        for node in range(count):
            above = draw.randint(-1, node - 1)
            parent[row, node] = above
            score[row, node] = (float(score[row, above]) if above >= 0 else 0.0) + math.log(draw.uniform(0.1, 1))
    return TokenTree(torch.arange(rows * most).view(rows, most), parent, length, score)


def best_rate(tree: TokenTree, trust: list[float], seconds: Callable[[int], float], beside: int) -> float:
    """The most tokens per second of any choice of nodes that is closed upwards."""
    assert tree.score is not None
    nodes = [(row, node) for row, count in enumerate(tree.length) for node in range(count)]
    best, rows = 0.0, len(tree.length)
    for size in range(len(nodes) + 1):
        for chosen in itertools.combinations(nodes, size):
            if all((row, int(tree.parent[row, node])) in chosen or tree.parent[row, node] < 0 for row, node in chosen):
                written = sum(trust[row] * math.exp(tree.score[row, node]) for row, node in chosen)
                best = max(best, (rows + beside + written) / seconds(rows + beside + size))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_no_choice_of_nodes_writes_more_per_second(seed: int) -> None:
    tree, draw = random_trees(2, 5, seed), random.Random(seed)
    trust, beside = [draw.uniform(0.3, 1.0) for _ in range(2)], seed % 2
    curve = CostCurve((1, 3, 6, 12), (1.0, 1.1, 1.5, 3.0 + seed))
    kept, chances = paying(tree, trust, curve.seconds_for_all, beside)
    assert kept.score is not None and tree.score is not None
    written = sum(trust[row] * sum(chances[row]) for row in range(2))
    rate = (2 + beside + written) / curve.seconds_for_all(2 + beside + sum(kept.length))
    assert rate == pytest.approx(best_rate(tree, trust, curve.seconds_for_all, beside))
    for row, count in enumerate(kept.length):
        assert chances[row] == sorted(chances[row], reverse=True) and len(chances[row]) == count
        for node in range(count):  # each is what it was, under the same parent
            old = int(kept.tokens[row, node]) - 5 * row
            above, before = int(kept.parent[row, node]), int(tree.parent[row, old])
            assert above < node and (above < 0) == (before < 0)
            assert above < 0 or int(kept.tokens[row, above]) - 5 * row == before
            assert kept.score[row, node] == tree.score[row, old]


@pytest.mark.parametrize("seed", range(40))
def test_what_is_worth_less_than_the_least_never_pays(seed: int) -> None:
    draw = random.Random(seed)
    times = list(itertools.accumulate(draw.choice([0.0, 0.02, 0.1, 0.4]) for _ in range(6)))
    curve = CostCurve((1, 3, 4, 6, 9, 12), tuple(1.0 + more for more in times))
    rows, beside = draw.randint(1, 2), draw.randint(0, 1)
    tree = random_trees(rows, 5, seed)
    least = least_worths(curve, rows + beside, rows, 5)
    assert sorted(least) == list(least)
    _, chances = paying(tree, [0.9] * rows, curve.seconds_for_all, beside)
    for row in chances:
        assert all(0.9 * chance >= worth - 1e-12 for chance, worth in zip(row, least, strict=False))
    free = least_worths(CostCurve((1, 40), (1.0, 1.0)), 1, 1, 4)
    assert free == (0.0,) * 4 and least_worths(CostCurve((1,), (1.0,)), 1, 1, 4) == pytest.approx((1.0,) * 4)


def test_nothing_is_drafted_where_nothing_pays() -> None:
    kept, chances = paying(random_trees(2, 5, 1), [0.05, 0.05], lambda tokens: float(tokens))
    assert kept.length == [0, 0] and chances == [[], []] and kept.tokens.shape == (2, 0)
    empty = TokenTree(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.int64), [0])
    empty.score = torch.zeros(1, 0, dtype=torch.float64)
    assert paying(empty, [1.0], lambda tokens: 1.0)[0].length == [0]


def test_trust_follows_what_was_kept_and_fades() -> None:
    trust = Trust()
    assert trust.value == 1
    for _ in range(40):
        trust = trust.after(0, 2.0)
    low = trust.value
    assert low < 0.1
    for _ in range(100):
        trust = trust.after(0, 0.0)  # nothing was drafted: it is tried again some day
    assert trust.value > 0.8
    for _ in range(40):
        trust = trust.after(3, 1.0)
    assert trust.value == 1.5


def test_an_arm_that_was_far_off_rests_longer_while_another_drafts_well() -> None:
    """Trials are paid for from what drafting wins, so that a strong arm could be interrupted for ever."""
    arms = [BanditArm(0), BanditArm(8, kind="sized"), BanditArm(4)]
    bandit, stats = (
        Bandit(arms, CostCurve((1, 16), (1.0, 1.2)), 0.01, is_timed=False),
        [[ArmStats(), ArmStats(), ArmStats()]],
    )
    chosen = []
    for _ in range(400):
        if bandit.countdown <= 0 or not chosen:
            bandit.choose(stats, rooms=[1000])
        arm = bandit.current
        chosen.append(arm)
        if arm == 0:
            bandit.observe_plain(1.0)
            continue
        written = 4 if arm == 1 else 1
        if arm == 2:
            bandit.lengths(2, stats, [4], [1000])
        stats[0][arm].add(written, written - 1, arm == 2)
        bandit.observe(5, 0.0, 1.0, written)
    assert chosen.count(1) > 350 and 4 <= chosen.count(2) <= 16
    assert arms[2].rest > arms[1].rest
