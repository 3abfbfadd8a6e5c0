"""Low-confidence re-masking: when a block is full, its least sure tokens are masked once more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from outpace.canvas.reading import Reading
from outpace.canvas.row import CanvasRow
from outpace.canvas.rules.ancestral import written_places
from outpace.canvas.rules.ranked import Ranked
from outpace.canvas.rules.rule import Choice, Rule, surest

__all__ = ["Revise"]


@dataclass(frozen=True, slots=True)
class Revise(Rule):
    """Write the surest places; in the step that would finish the block, mask its least sure share again, once.

    How sure a token is, is the probability it had when it was written (Ghazvininejad et al. 2019, mask-predict,
    arXiv 1904.09324, section 3). What is masked again is drawn anew, now knowing the rest of the block. The memo is
    the base of the block that has been revised.

    Attributes:
        share: of the block's written places, rounded down; 0 = plain confidence decoding.
        per_step: places written per step.
    """

    share: float
    per_step: int = 1

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        """Decide for one row."""
        writes = Ranked(per_step=self.per_step).choose(reading, row, None).writes
        if memo == row.base or not bool((writes == reading.within(row.end)).all()):
            return Choice(writes, memo=memo)
        held = written_places(reading, row)
        sure = np.concatenate([np.exp(row.log_probs[held]), reading.confidence])
        is_own = np.concatenate([np.ones(len(held), dtype=np.bool_), writes])
        back = surest(-sure, is_own, int(self.share * is_own.sum()))
        again = held[back[: len(held)]]
        if len(again):  # else nothing that was forwarded changes, and the same tokens would be drawn again
            writes = writes & ~back[len(held) :]
        return Choice(writes, masked=again, memo=row.base)
