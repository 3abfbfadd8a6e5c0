"""How often the target picks the drafter's likeliest token, its second, its third: counted as a row is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from outpace.errors import ConfigError

__all__ = ["RankCounts", "given_rates"]

_PRIOR_WEIGHT = 20.0  # an unseen rank counts as if it had been tried this often
_DISCOUNT = 0.99  # per step


@dataclass(slots=True)
class RankCounts:
    """Tries and acceptances of each rank of one row, discounted.

    Attributes:
        prior: rate of each rank before anything was seen.
        tried, accepted: counts per rank.
    """

    prior: tuple[float, ...]
    tried: list[float] = field(default_factory=list)
    accepted: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.tried:
            self.tried, self.accepted = [0.0] * len(self.prior), [0.0] * len(self.prior)

    def add(self, parent: Sequence[int], rank: Sequence[int], path: Sequence[int]) -> None:
        """Count one step: at every node that the walk came to, each child there was tried, and one or none accepted.

        Args:
            parent, rank: of the tree's nodes, without padding.
            path: accepted nodes in order.
        """
        self.tried = [_DISCOUNT * count for count in self.tried]
        self.accepted = [_DISCOUNT * count for count in self.accepted]
        visited = {-1, *path}
        for above, order in zip(parent, rank, strict=True):
            if above in visited and order < len(self.tried):
                self.tried[order] += 1
        for node in path:
            if rank[node] < len(self.accepted):
                self.accepted[rank[node]] += 1

    def rates(self) -> tuple[float, ...]:
        """Return the estimated acceptance of each rank, never rising, in hundredths (so that estimates settle)."""
        found, least = [], 1.0
        for prior, tried, accepted in zip(self.prior, self.tried, self.accepted, strict=True):
            least = min(least, (accepted + _PRIOR_WEIGHT * prior) / (tried + _PRIOR_WEIGHT))
            found.append(round(least, 2))
        return tuple(found)

    def copy(self) -> RankCounts:
        """Return an independent copy (a forked row)."""
        return RankCounts(self.prior, list(self.tried), list(self.accepted))


def given_rates(text: str) -> tuple[float, ...]:
    """Return the chances written in a text, parted by commas.

    Raises:
        ConfigError: it is no list of numbers from 0 to 1.
    """
    try:
        rates = tuple(float(item) for item in text.split(",") if item.strip())
    except ValueError:
        rates = (-1.0,)
    if any(not 0 <= rate <= 1 for rate in rates):
        raise ConfigError(f"acceptance is {text!r}.", "Give chances from 0 to 1, such as 0.5,0.2,0.1.")
    return rates
