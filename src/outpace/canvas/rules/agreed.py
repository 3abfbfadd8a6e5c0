"""Writing from the left as far as something else agrees: the rule of guided diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, CanvasRow
from outpace.canvas.rules.rule import Choice, Rule, eligible

__all__ = ["Agreed", "leading"]


def leading(agrees: Bools) -> Bools:
    """Return [A] the places before the first disagreement, and in any case the first place."""
    run: Bools = np.logical_and.accumulate(agrees)
    run[:1] = True
    return run


@dataclass(frozen=True, slots=True)
class Agreed(Rule):
    """Write the places that a guide agrees with, from the left up to the first disagreement, and at least one place.

    Attributes:
        agrees: [A] bool, for one reading.
        is_open_ended: write beyond the block in work as well.
    """

    agrees: Bools
    is_open_ended: bool = False

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        """Decide for one row."""
        agrees = self.agrees if reading.waits is None else self.agrees & ~reading.waits
        writes = leading(agrees)
        return Choice(writes if self.is_open_ended else writes & eligible(reading, row), memo=memo)
