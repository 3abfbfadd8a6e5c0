"""A fixed number of steps for each block, whatever its size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from outpace.canvas.reading import Reading
from outpace.canvas.row import CanvasRow
from outpace.canvas.rules.ranked import Ranked
from outpace.canvas.rules.rule import Choice, Rule

__all__ = ["Paced"]


@dataclass(frozen=True, slots=True)
class Paced(Rule):
    """Write the best-ranked places, as many per step as finish the block in its steps, the greater numbers first.

    Attributes:
        ranked: how places are ranked; its `per_step` is replaced.
        steps: for a block; fewer where it has fewer places.
    """

    ranked: Ranked
    steps: int

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        """Decide for one row."""
        masked, left = int(reading.within(row.end).sum()), max(self.steps - row.step, 1)
        return replace(self.ranked, per_step=-(-masked // left)).choose(reading, row, memo)
