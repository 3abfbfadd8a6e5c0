"""Which tree to draft when a node's k-th likeliest child is accepted with a known chance: its shape, and its size.

Source: Chen et al. (2024), Sequoia, arXiv 2402.12374: the expected number of accepted drafts of a tree is the sum, over
its nodes, of the product of the acceptance rates of the ranks on the path; the size is chosen against the measured
time of drafting and of scoring that many tokens.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from outpace.schedule.cost import CostCurve

__all__ = ["RankTree", "best_budget", "best_shape", "planned"]

_DEFAULT_BUDGET = 16  # without a cost curve


@dataclass(frozen=True, slots=True)
class RankTree:
    """A tree without tokens, ordered by depth.

    Attributes:
        parent: of each node, -1 = the last final token; parents precede children.
        rank: of each node among its siblings, 0 = likeliest.
    """

    parent: tuple[int, ...] = ()
    rank: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.parent)

    @property
    def depth(self) -> int:
        """Levels."""
        depths: list[int] = []
        for above in self.parent:
            depths.append(1 + (depths[above] if above >= 0 else 0))
        return max(depths, default=0)

    @staticmethod
    def regular(branches: Sequence[int]) -> RankTree:
        """Return the tree in which every node of level i has `branches[i]` children."""
        parent: list[int] = []
        rank: list[int] = []
        level = [-1]
        for count in branches:
            begin = len(parent)
            parent += [above for above in level for _ in range(count)]
            rank += [order for _ in level for order in range(count)]
            level = list(range(begin, len(parent)))
        return RankTree(tuple(parent), tuple(rank))

    @staticmethod
    def stack(shapes: Sequence[RankTree], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, list[int]]:
        """Return one shape per row as parent [B, W], rank [B, W] and the number of nodes of each row."""
        width = max((len(shape) for shape in shapes), default=0)
        parent = [[*shape.parent, *[-1] * (width - len(shape))] for shape in shapes]
        rank = [[*shape.rank, *[0] * (width - len(shape))] for shape in shapes]
        table = torch.tensor([parent, rank], dtype=torch.int64, device=device).view(2, len(shapes), width)
        return table[0], table[1], [len(shape) for shape in shapes]


def best_shape(acceptance: Sequence[float], budget: int, max_depth: int) -> tuple[RankTree, list[float]]:
    """Return the tree of `budget` nodes and at most `max_depth` levels with the most expected accepted drafts.

    The paper finds it with a dynamic program over sizes, depths and ranks. Its optimum is simpler to come by: the value
    of a node is the product of the rates on its path, which rises neither from parent to child nor from a sibling to
    the next, so taking the most valuable open node each time builds the best tree of every size on the way.

    Args:
        acceptance: chance that the child of rank 0, 1, ... is accepted, given that its parent was. A rate above that of
            the rank before it is cut to it.
        budget: nodes; fewer when all possible ones are taken or worth nothing.
        max_depth: levels.

    Returns:
        The shape, and the value of its nodes in the order in which they were taken (never rising).
    """
    rates = [min(acceptance[: rank + 1]) for rank in range(len(acceptance))]
    taken: list[tuple[float, int, int, int]] = []  # value, parent, rank, depth
    heap = [(-rates[0], 0, -1, 0, 1)] if rates and rates[0] > 0 and max_depth > 0 else []
    number = 1  # of a candidate: the earlier one wins a tie
    while heap and len(taken) < budget:
        value, _, parent, rank, depth = heapq.heappop(heap)
        taken.append((-value, parent, rank, depth))
        if depth < max_depth:
            heapq.heappush(heap, (value * rates[0], number, len(taken) - 1, 0, depth + 1))
        if rank + 1 < len(rates) and rates[rank + 1] > 0:
            following = value / rates[rank] * rates[rank + 1]
            heapq.heappush(heap, (following, number + 1, parent, rank + 1, depth))
        number += 2
    order = sorted(range(len(taken)), key=lambda node: taken[node][3])
    place = {node: at for at, node in enumerate(order)} | {-1: -1}
    shape = RankTree(tuple(place[taken[node][1]] for node in order), tuple(taken[node][2] for node in order))
    return shape, [node[0] for node in taken]


def best_budget(
    acceptance: Sequence[float], curve: CostCurve, draft_s: float, max_budget: int, max_depth: int
) -> tuple[int, int]:
    """Return the number of nodes and of levels that write the most tokens per second; (0, 0) = draft nothing.

    A step of a tree with n nodes on d levels takes d drafter forwards and one forward of n + 1 tokens, and writes one
    token more than it accepts.

    Args:
        acceptance: as in `best_shape`.
        curve: seconds of a target forward by its tokens.
        draft_s: seconds of a drafter forward.
        max_budget, max_depth: limits.
    """
    best, choice = 1 / curve.seconds_for(1), (0, 0)
    for depth in range(1, max_depth + 1):
        expected = 1.0
        for size, value in enumerate(best_shape(acceptance, max_budget, depth)[1], start=1):
            expected += value
            rate = expected / (depth * draft_s + curve.seconds_for(1 + size))
            if rate > best:
                best, choice = rate, (size, depth)
    return choice


@functools.lru_cache(maxsize=1024)
def planned(
    rates: tuple[float, ...], curve: CostCurve | None, draft_s: float, budget: int, max_budget: int, max_depth: int
) -> RankTree:
    """Return the tree to draft; remembered, since estimates settle.

    Args:
        rates: acceptance by rank, as in `best_shape`.
        curve: seconds of a target forward by its tokens, None = unknown.
        draft_s: seconds of a drafter forward.
        budget: nodes; 0 = what pays best by the curve, or 16 where there is none.
        max_budget, max_depth: limits.
    """
    depth = max_depth = min(max_depth, budget or max_budget)  # no tree is deeper than it has nodes
    if budget == 0 and curve is None:
        budget = min(_DEFAULT_BUDGET, max_budget)
    elif budget == 0 and curve is not None:
        budget, depth = best_budget(rates, curve, draft_s, max_budget, max_depth)
    return best_shape(rates, budget, depth)[0]
