"""The best shape against brute force and against Sequoia's dynamic program; the size against all sizes; rank counts."""

from __future__ import annotations

import functools
import itertools

import pytest

from outpace.schedule.cost import CostCurve
from outpace.schedule.ranks import RankCounts
from outpace.schedule.tree_size import RankTree, best_budget, best_shape

RATES = [(0.6, 0.3), (0.5, 0.2, 0.15, 0.1), (0.9,), (0.3, 0.3, 0.3), (0.4, 0.0, 0.3)]


def expectation(shape: RankTree, rates: tuple[float, ...]) -> float:
    """Expected accepted drafts: each node counts with the product of the rates on its path."""
    values: list[float] = []
    for parent, rank in zip(shape.parent, shape.rank, strict=True):
        values.append((values[parent] if parent >= 0 else 1.0) * rates[rank])
    return sum(values)


def all_expectations(rates: tuple[float, ...], budget: int, depth: int) -> float:
    """The most that any tree of this size expects, over every set of nodes that is closed upwards."""
    names = [path for size in range(1, depth + 1) for path in itertools.product(range(len(rates)), repeat=size)]
    best = 0.0
    for nodes in itertools.combinations(names, budget):
        chosen = set(nodes)
        if all(len(path) == 1 or path[:-1] in chosen for path in nodes):
            total = 0.0
            for path in nodes:
                value = 1.0
                for rank in path:
                    value *= rates[rank]
                total += value
            best = max(best, total)
    return best


def by_program(rates: tuple[float, ...], budget: int, depth: int) -> float:
    """Sequoia's recursion: T(n, d, b), trees of n nodes with their root, d levels, whose root has b children."""

    @functools.cache
    def best(size: int, levels: int) -> float:
        return max((tree(size, levels, count) for count in range(len(rates) + 1)), default=float("-inf"))

    @functools.cache
    def tree(size: int, levels: int, count: int) -> float:
        if size < 1 or levels < 1:
            return float("-inf")
        if count == 0:
            return 1.0 if size == 1 else float("-inf")
        last = range(1, size)  # nodes of the last child's subtree
        return max(
            (tree(size - n, levels, count - 1) + rates[count - 1] * best(n, levels - 1) for n in last), default=-1e9
        )

    return max(best(size, depth + 1) for size in range(1, budget + 2)) - 1


@pytest.mark.parametrize("rates", RATES[:4], ids=str)
@pytest.mark.parametrize(("budget", "depth"), [(3, 2), (4, 2), (5, 3)])
def test_the_shape_is_the_best_of_all(rates: tuple[float, ...], budget: int, depth: int) -> None:
    shape, values = best_shape(rates, budget, depth)
    assert expectation(shape, rates) == pytest.approx(sum(values))
    possible = sum(len(rates) ** size for size in range(1, depth + 1))
    size = min(budget, possible)
    assert len(shape) == size and shape.depth <= depth
    if possible < 50:
        assert sum(values) == pytest.approx(all_expectations(rates, size, depth))


@pytest.mark.parametrize("rates", RATES[:4], ids=str)
@pytest.mark.parametrize(("budget", "depth"), [(5, 3), (16, 4), (24, 9)])
def test_the_greedy_shape_is_the_optimum_of_the_papers_program(
    rates: tuple[float, ...], budget: int, depth: int
) -> None:
    assert sum(best_shape(rates, budget, depth)[1]) == pytest.approx(by_program(rates, budget, depth))


def test_a_shape_by_hand() -> None:
    # 0.6, then 0.36 below it, then 0.3 beside it, then 0.216 and 0.18: the first three expect 1.26 accepted drafts.
    shape, values = best_shape((0.6, 0.3), 5, 3)
    assert values == pytest.approx([0.6, 0.36, 0.3, 0.216, 0.18])
    assert shape == RankTree((-1, -1, 0, 0, 2), (0, 1, 0, 1, 0))
    assert best_shape((0.6, 0.3), 2, 1)[0] == RankTree((-1, -1), (0, 1))
    assert best_shape((0.4, 0.0, 0.3), 9, 2)[0] == RankTree((-1, 0), (0, 0))  # a rate of nothing ends the ranks
    assert len(best_shape((), 4, 4)[0]) == len(best_shape((0.5,), 4, 0)[0]) == 0


def test_regular_and_stacked_shapes() -> None:
    shape = RankTree.regular((2, 1))
    assert shape == RankTree((-1, -1, 0, 1), (0, 1, 0, 0)) and shape.depth == 2
    parent, rank, length = RankTree.stack([shape, RankTree((-1,), (2,)), RankTree()])
    assert parent.tolist() == [[-1, -1, 0, 1], [-1, -1, -1, -1], [-1, -1, -1, -1]]
    assert rank.tolist() == [[0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]] and length == [4, 1, 0]


CURVES = {
    "flat": CostCurve((1, 64), (1.0, 1.0)),
    "knee": CostCurve((1, 8, 16, 64), (1.0, 1.05, 2.0, 8.0)),
    "linear": CostCurve((1, 2), (1.0, 2.0)),
}


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("draft_s", [0.0, 0.1, 0.5])
def test_the_size_is_the_best_of_all(name: str, draft_s: float) -> None:
    curve, rates = CURVES[name], (0.6, 0.2, 0.1)
    chosen = best_budget(rates, curve, draft_s, 24, 6)
    rate = {(0, 0): 1 / curve.seconds_for(1)}
    for depth, size in itertools.product(range(1, 7), range(1, 25)):
        expected = 1 + by_program(rates, size, depth)
        rate[size, depth] = expected / (depth * draft_s + curve.seconds_for(1 + size))
    assert rate[chosen] == pytest.approx(max(rate.values()))


def test_the_size_follows_the_machine() -> None:
    rates = (0.6, 0.2, 0.1)
    flat, knee, linear = (best_budget(rates, CURVES[name], 0.05, 64, 8)[0] for name in ("flat", "knee", "linear"))
    assert flat == 64 and knee == 7 and linear == 0  # 8 tokens are cheap, more are not; or each costs a whole step
    assert best_budget(rates, CURVES["flat"], 5.0, 64, 8) == (0, 0)  # drafting costs more than it can bring


def test_rank_counts_by_hand() -> None:
    counts = RankCounts((0.5, 0.2))
    # Root with two children, the second accepted; it has one child, which is not.
    counts.add([-1, -1, 1], [0, 1, 0], [1])
    assert counts.tried == [2.0, 1.0] and counts.accepted == [0.0, 1.0]
    assert counts.rates() == (round(10 / 22, 2), round(5 / 21, 2))
    before = counts.copy()
    counts.add([], [], [])
    assert counts.tried[0] == pytest.approx(1.98) and before.tried[0] == 2.0
    for _ in range(400):
        counts.add([-1, -1], [0, 1], [1])  # always the second: rates never rise with the rank
    assert counts.rates()[0] == counts.rates()[1] < 0.15
