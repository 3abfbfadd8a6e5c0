"""How much of a drafted tree is worth its scoring: by what its drafter thinks of every node, and by what was kept.

Source: Wang et al. (2024), OPT-Tree, arXiv 2406.17276: the sum of the nodes' probabilities is the expected number of
accepted drafts; Chen et al. (2024), Sequoia, arXiv 2402.12374, section 3.3: its size follows what a forward costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from outpace.run.tree import TokenTree
from outpace.schedule.cost import CostCurve

__all__ = ["Trust", "least_worths", "paying", "seconds_for"]

_PRIOR = 2.0  # drafts that are taken to have been kept as was hoped
_KEPT = 0.95  # of what was counted, per step
_LEAST, _MOST = 0.05, 1.5


@dataclass(frozen=True, slots=True)
class Trust:
    """What a drafter's hopes for one row have proven to be worth.

    Attributes:
        kept, hoped: drafts that were kept, and that were hoped to be, discounted.
    """

    kept: float = 0.0
    hoped: float = 0.0

    @property
    def value(self) -> float:
        """The factor on the probabilities that the drafter names."""
        return min(_MOST, max(_LEAST, (self.kept + _PRIOR) / (self.hoped + _PRIOR)))

    def after(self, kept: int, hoped: float) -> Trust:
        """Return what is known after a step; one without drafts lets it fade, so that a row is tried again."""
        return Trust(_KEPT * self.kept + kept, _KEPT * self.hoped + hoped)

    def copy(self) -> Trust:
        """Return an independent copy (a forked row)."""
        return replace(self)


def paying(
    tree: TokenTree, trust: Sequence[float], seconds: Callable[[int], float], beside: int = 0
) -> tuple[TokenTree, list[list[float]]]:
    """Return the nodes that bring the most tokens per time, the likeliest first, and the drafter's chance of each.

    All rows share the forward, so nodes of all of them are weighed against each other. Scores do not rise along a path:
    the likeliest nodes of a row are a tree, and so are the first of those.

    Args:
        tree: with scores.
        trust: per row, the factor on its probabilities.
        seconds: of a forward of so many tokens, all rows together.
        beside: rows of others in the same forward.
    """
    assert tree.score is not None
    # Lists throughout: nodes are few, and after a forward a call of numpy or torch finds its code out of the caches.
    length, device = tree.length, tree.tokens.device
    table = zip(tree.tokens.tolist(), tree.parent.tolist(), tree.score.tolist(), length, strict=True)
    rows = [(tokens, parent, score, [math.exp(x) for x in score[:count]]) for tokens, parent, score, count in table]
    # 1 Of the nodes of all rows, from the likeliest on, as many as raise the tokens per second of the step.
    worth = [(factor * chance, row) for row, factor in enumerate(trust) for chance in rows[row][3]]
    worth.sort(key=lambda one: -one[0])
    others = len(rows) + beside
    best, written, counts = others / seconds(others), float(others), [0] * len(rows)
    taken = 0
    for size, (more, _) in enumerate(worth, 1):
        written += more
        rate = written / seconds(others + size)
        if rate > best and more > 0:
            best, taken = rate, size
    for _, row in worth[:taken]:
        counts[row] += 1
    # 2 In order of their chance: what is cut off behind any of them is the least likely.
    kept, most = [_likeliest(*row, count) for row, count in zip(rows, counts, strict=True)], max(counts, default=0)
    filled = [[values + [rest] * (most - len(values)) for values, rest in zip(row, _NONE, strict=True)] for row in kept]
    columns = [torch.tensor([row[i] for row in filled], dtype=kind, device=device) for i, kind in enumerate(_KINDS)]
    return TokenTree(columns[0], columns[1], counts, columns[2]), [row[3] for row in kept]


_KINDS = (torch.int64, torch.int64, torch.float64)
_NONE: tuple[Any, ...] = (0, -1, -math.inf, 0.0)  # what pads a row


def _likeliest(
    tokens: list[int], parent: list[int], score: list[float], chance: list[float], count: int
) -> tuple[list[Any], ...]:
    """Return a row's likeliest nodes, the likeliest first: tokens, parents among them, scores and chances."""
    order = sorted(range(len(chance)), key=lambda node: -chance[node])[:count]
    place = {node: i for i, node in enumerate(order)} | {-1: -1}
    above = [place[parent[node]] for node in order]
    return ([tokens[i] for i in order], above, [score[i] for i in order], [chance[i] for i in order])


@lru_cache(maxsize=256)
def least_worths(curve: CostCurve, tokens: int, rows: int, most: int) -> tuple[float, ...]:
    """Return what the likeliest node of a row has to be worth at the least to be among those that pay, the next, ...

    If n nodes pay best, those behind the first m of them bring no less per second than all do, and all no less than
    none do: (n - m) times the worth of the next is at least the plain rate times what they take longer. A node of a
    lower worth is left out whatever else is drafted, so that nothing need be drafted behind it.

    Args:
        curve: of forwards.
        tokens: in a forward without nodes, of all rows together.
        rows: that nodes are drafted for.
        most: nodes of a row.
    """
    total = rows * most
    times = np.array([seconds_for(curve, tokens + count) for count in range(total + 1)]) / seconds_for(curve, tokens)
    least = [float(((times[m + 1 :] - times[m]) / np.arange(1, total - m + 1)).min()) for m in range(total)]
    # Among all rows' nodes a row's node has its rank there or a later one, so that the least of what follows holds.
    ahead = np.minimum.accumulate(least[::-1])[::-1]
    return tuple(max(0.0, tokens * float(worth)) for worth in ahead[:most])


@lru_cache(maxsize=4096)
def seconds_for(curve: CostCurve, tokens: int) -> float:
    """Return the time of a forward of so many tokens, all rows together, without looking it up each time."""
    return curve.seconds_for_all(tokens)
