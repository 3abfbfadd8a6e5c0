"""A fixed number of steps for each block, whatever its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, CanvasRow, Ids
from outpace.canvas.rules.ranked import Ranked
from outpace.canvas.rules.rule import Rule
from outpace.canvas.table import RowTable

__all__ = ["Paced", "share"]


@dataclass(frozen=True, slots=True)
class Paced(Rule):
    """Write the best-ranked places, as many per step as finish the block in its steps, the greater numbers first.

    Attributes:
        ranked: how places are ranked; its `per_step` is replaced.
        steps: for a block; fewer where it has fewer places.
    """

    ranked: Ranked
    steps: int

    def writes(self, reading: Reading, row: CanvasRow | RowTable, memo: Any) -> Bools:
        """Return the best of the block, its share of this step."""
        del memo
        return self.ranked.best(reading, row, share(reading, row, self.steps))


def share(reading: Reading, row: CanvasRow | RowTable, steps: int | Ids) -> Ids:
    """Return [..., 1] how many of the block's masked places a step writes that leaves equal shares to later ones."""
    masked = np.count_nonzero(reading.within(row.end), axis=-1, keepdims=True)
    found: Ids = -(-masked // np.maximum(steps - row.step, 1))
    return found
