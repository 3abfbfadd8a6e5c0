"""The cost of a forward by its number of tokens, as it was measured."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from outpace.errors import ConfigError

__all__ = ["CostCurve"]


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Seconds of a forward by the number of tokens in it.

    Attributes:
        sizes: tokens per forward and row, ascending from 1.
        seconds: median time of such a forward.
        context: cached tokens before it.
        batch: rows.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    context: int = 256
    batch: int = 1

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.seconds) or not self.sizes or self.sizes[0] != 1:
            raise ConfigError("A cost curve needs one time per size, from size 1 on.", "Measure it with outpace tune.")
        if list(self.sizes) != sorted(set(self.sizes)) or min(self.seconds) <= 0:
            raise ConfigError("A cost curve's sizes ascend and its times are positive.", "Measure it again.")

    def seconds_for(self, size: int) -> float:
        """Return the time of a forward of `size` tokens: linear between what was measured and beyond it."""
        at = min(max(bisect_left(self.sizes, size), 1), len(self.sizes) - 1)
        if len(self.sizes) == 1:
            return self.seconds[0] * max(1, size)
        (low, high), (first, last) = self.sizes[at - 1 : at + 1], self.seconds[at - 1 : at + 1]
        return max(first + (last - first) * (size - low) / (high - low), self.seconds[0])

    def ratio(self, size: int) -> float:
        """Return T(size) / T(1)."""
        return self.seconds_for(size) / self.seconds[0]
