"""How much of a drafted tree is worth its scoring: by what its drafter thinks of every node, and by what was kept.

Source: Wang et al. (2024), OPT-Tree, arXiv 2406.17276: the sum of the nodes' probabilities is the expected number of
accepted drafts; Chen et al. (2024), Sequoia, arXiv 2402.12374, section 3.3: its size follows what a forward costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

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


def paying(chances: Sequence[Sequence[float]], seconds: Callable[[int], float], beside: int = 0) -> list[list[int]]:
    """Return per row the nodes that bring the most tokens per time, the likeliest first.

    All rows share the forward, so nodes of all of them are weighed against each other. Chances do not rise along a path
    and parents precede children: what is returned of a row, and the first of it, is a tree.

    Args:
        chances: per row and node, that the target's walk reaches it.
        seconds: of a forward of so many tokens, all rows together.
        beside: rows of others in the same forward.
    """
    # Lists throughout: nodes are few, and after a forward a call of numpy or torch finds its code out of the caches.
    worth = [(chance, row) for row, own in enumerate(chances) for chance in own]
    worth.sort(key=lambda one: -one[0])
    others, counts = len(chances) + beside, [0] * len(chances)
    best, written, taken = others / seconds(others), float(others), 0
    for size, (more, _) in enumerate(worth, 1):
        written += more
        rate = written / seconds(others + size)
        if rate > best and more > 0:
            best, taken = rate, size
    for _, row in worth[:taken]:
        counts[row] += 1
    return [
        sorted(range(len(own)), key=lambda node: -own[node])[:count] for own, count in zip(chances, counts, strict=True)
    ]


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
