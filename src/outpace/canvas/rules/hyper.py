"""One sampler for every hyperschedule: a noise level of its own for each place, and mending of written tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from outpace.canvas.blocks import Schedule
from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, Canvas, CanvasRow, Floats, Ids
from outpace.canvas.rules.rule import Choice, Rule, eligible

__all__ = ["SHAPES", "Hyper"]

SHAPES = ("step", "flat", "sliding", "block")


@dataclass(frozen=True, slots=True)
class Hyper(Rule):
    """In the time step from t to t + 1, a masked place is written with the chance that its noise ends there.

    The noise of place i of a block falls evenly from 1 to 0 over `lasts` steps from time `begins[i]` on. A place whose
    noise goes from a to b is written with probability (a - b) / a, as in MDLM (Sahoo et al., 2024, arXiv 2406.07524);
    steps in which nothing is written reuse the law at hand. The memo is (mask id, base of the block, time steps done,
    rounds of mending).

    Attributes:
        shape: one of `SHAPES`: places one after the other, all at once, one `1 / rate` steps after the other, or
            groups of `width` one after the other.
        steps: how long the noise of a place lasts ("flat", "block"); 0 = as long as there are places.
        width: how long it lasts ("sliding"), or places of a group ("block").
        rate: places whose noise begins to fall per step ("sliding").
        correct: least probability of another token that is written over one that stands; 0 = none is.
        rounds: steps behind the last mask of a block in which tokens are still mended; they end where none is.
    """

    shape: str
    steps: int = 0
    width: int = 4
    rate: float = 1.0
    correct: float = 0.0
    rounds: int = 0

    def start(self, row: CanvasRow, canvas: Canvas, schedule: Schedule) -> Any:
        """Return the memo of a row without a block."""
        del row, schedule
        return canvas.mask_id, -1, 0, 0

    @property
    def is_correcting(self) -> bool:
        """Whether written tokens are looked at."""
        return self.correct > 0

    def timing(self, at: Ids, count: int) -> tuple[Floats, int]:
        """Return when the noise of places begins to fall [A], and how long it lasts.

        Args:
            at: [A] places, counted from the block's begin.
            count: places of the block that are to be written.
        """
        place = at.astype(np.float64)
        if self.shape == "step":
            return place, 1
        if self.shape == "sliding":
            return place / self.rate, self.width
        lasts = self.steps or (count if self.shape == "flat" else self.width)
        return np.floor(place / self.width) * lasts if self.shape == "block" else np.zeros_like(place), lasts

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        """Decide for one row."""
        mask, base, time, rounds = memo
        time, rounds = (time, rounds) if base == row.base else (0, 0)
        is_masked = row.tokens[reading.places] == mask
        is_open, inside = eligible(reading, row) & is_masked, reading.within(row.end) & is_masked
        wrong = self._wrong(reading, row, is_masked)
        writes, time = self._written(reading, row, is_open, bool(wrong.any()), time)
        is_last = bool((writes == inside).all())
        holds = self.is_correcting and is_last and rounds < self.rounds and (bool(inside.any()) or bool(wrong.any()))
        return Choice(writes | wrong, memo=(mask, row.base, time, rounds + is_last), holds=holds)

    def _wrong(self, reading: Reading, row: CanvasRow, is_masked: Bools) -> Bools:
        if not self.is_correcting:
            return np.zeros(len(is_masked), dtype=np.bool_)
        is_other = reading.tokens != row.tokens[reading.places]
        found: Bools = ~is_masked & is_other & reading.within(row.end) & (reading.confidence >= self.correct)
        return found

    def _written(
        self, reading: Reading, row: CanvasRow, is_open: Bools, is_mending: bool, time: int
    ) -> tuple[Bools, int]:
        """Return [A] the masks that are written, and the time after it: the first step in which something happens."""
        begins, lasts = self.timing(reading.places - row.base, int((~row.given[row.base : row.end]).sum()))
        while True:
            past = np.clip(time - begins, 0, lasts)
            falls = np.clip(time + 1 - begins, 0, lasts) - past
            left = lasts - past
            chance = np.where(left > 0, falls / np.maximum(left, 1e-9), 1.0)
            writes = is_open & (reading.noise(2 * time) < chance)
            time += 1
            if is_mending or writes.any() or not is_open.any():
                return writes, time
