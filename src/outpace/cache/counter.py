"""Work done by one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Counter"]


@dataclass(slots=True)
class Counter:
    """Work done by one model in one run.

    Attributes:
        nfe: forward passes.
        positions: tokens forwarded, padding included.
        layers: layer applications (nfe x layers run).
    """

    nfe: int = 0
    positions: int = 0
    layers: int = 0

    def add(self, positions: int, layers: int) -> None:
        """Count one forward of `positions` tokens through `layers` layers."""
        self.nfe += 1
        self.positions += positions
        self.layers += layers

    def rows(self, index: Sequence[int]) -> Counter:
        """Return itself: work is counted per run, whichever rows stay."""
        del index
        return self

    def join(self, counters: Sequence[Counter]) -> Counter:
        """Return itself: the run that rows join goes on counting."""
        del counters
        return self
