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


def chances_of(tree: TokenTree, trust: list[float]) -> list[list[float]]:
    assert tree.score is not None
    rows = zip(trust, tree.score.tolist(), tree.length, strict=True)
    return [[factor * math.exp(score) for score in scores[:count]] for factor, scores, count in rows]


@pytest.mark.parametrize("seed", range(6))
def test_no_choice_of_nodes_writes_more_per_second(seed: int) -> None:
    tree, draw = random_trees(2, 5, seed), random.Random(seed)
    trust, beside = [draw.uniform(0.3, 1.0) for _ in range(2)], seed % 2
    curve = CostCurve((1, 3, 6, 12), (1.0, 1.1, 1.5, 3.0 + seed))
    chances = chances_of(tree, trust)
    kept = paying(chances, curve.seconds_for_all, beside)
    written = sum(chances[row][node] for row in range(2) for node in kept[row])
    rate = (2 + beside + written) / curve.seconds_for_all(2 + beside + sum(map(len, kept)))
    assert rate == pytest.approx(best_rate(tree, trust, curve.seconds_for_all, beside))
    for row, nodes in enumerate(kept):
        own = [chances[row][node] for node in nodes]
        assert own == sorted(own, reverse=True) and len(set(nodes)) == len(nodes)
        for place, node in enumerate(nodes):  # a tree: every parent stands before its child
            above = int(tree.parent[row, node])
            assert above < 0 or above in nodes[:place]


@pytest.mark.parametrize("seed", range(40))
def test_what_is_worth_less_than_the_least_never_pays(seed: int) -> None:
    draw = random.Random(seed)
    times = list(itertools.accumulate(draw.choice([0.0, 0.02, 0.1, 0.4]) for _ in range(6)))
    curve = CostCurve((1, 3, 4, 6, 9, 12), tuple(1.0 + more for more in times))
    rows, beside = draw.randint(1, 2), draw.randint(0, 1)
    chances = chances_of(random_trees(rows, 5, seed), [0.9] * rows)
    least = least_worths(curve, rows + beside, rows, 5)
    assert sorted(least) == list(least)
    for own, kept in zip(chances, paying(chances, curve.seconds_for_all, beside), strict=True):
        assert all(own[node] >= worth - 1e-12 for node, worth in zip(kept, least, strict=False))
    free = least_worths(CostCurve((1, 40), (1.0, 1.0)), 1, 1, 4)
    assert free == (0.0,) * 4 and least_worths(CostCurve((1,), (1.0,)), 1, 1, 4) == pytest.approx((1.0,) * 4)


def test_nothing_is_drafted_where_nothing_pays() -> None:
    assert paying([[0.05, 0.01], [0.04]], lambda tokens: float(tokens)) == [[], []]
    assert paying([[]], lambda tokens: 1.0) == [[]]


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


def test_an_arm_that_sizes_its_drafts_is_left_once_it_has_lost_its_loan() -> None:
    """It drafts nothing where nothing pays, so a record below plain decoding's is no reason; a debt is."""
    arms = [BanditArm(0), BanditArm(8, 0.2, kind="sized", last_tried=0)]
    bandit = Bandit(arms, CostCurve((1, 16), (1.0, 1.2)), 0.01, is_timed=False)
    stats, chosen = [[ArmStats(), ArmStats()]], []
    for _ in range(200):
        if bandit.countdown <= 0 or not chosen:
            bandit.choose(stats, rooms=[1000])
        chosen.append(bandit.current)
        if bandit.current == 0:
            bandit.observe_plain(1.0)
            continue
        stats[0][1].add(1, 0, True)
        bandit.observe(8, 0.2, 1.1, 1)  # a fifth of a step for drafting, a tenth for scoring, and nothing kept
    assert chosen[0] == 1 and 0 in chosen
    assert 20 <= chosen.index(0) <= 40 and chosen.count(1) < 60
