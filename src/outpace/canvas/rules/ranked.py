"""The common rule of LLaDA, Dream, Fast-dLLM and MaskGIT: the best-ranked places of the block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from outpace.canvas.reading import Reading
from outpace.canvas.row import CanvasRow, Floats
from outpace.canvas.rules.orders import score
from outpace.canvas.rules.rule import Choice, Rule, eligible, surest

__all__ = ["Ranked"]


@dataclass(frozen=True, slots=True)
class Ranked(Rule):
    """Write the best-ranked places of the block.

    Attributes:
        order: what places are ranked by, one of `ORDERS`.
        per_step: places written per step, at least; fewer where fewer are left.
        threshold: places whose confidence reaches it are written as well; above 1 = none.
        order_temp: 0 = the best; above, places are drawn by softmax(score / order_temp), without replacement (Dream's
            `alg_temp`).
    """

    order: str = "confidence"
    per_step: int = 1
    threshold: float = 2.0
    order_temp: float = 0.0

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        """Decide for one row."""
        is_open = eligible(reading, row)
        writes = surest(self.rank(reading), is_open, self.per_step)
        if self.threshold <= 1:
            writes |= is_open & (reading.confidence >= self.threshold)
        return Choice(writes, memo=memo)

    def rank(self, reading: Reading) -> Floats:
        """Return [A] the scores, with Gumbel noise where places are drawn."""
        rank = score(self.order, reading)
        return rank if self.order_temp <= 0 else rank / self.order_temp - np.log(-np.log(reading.noise()))
