"""The common rule of LLaDA, Dream, Fast-dLLM and MaskGIT: the best-ranked places of the block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, CanvasRow, Floats, Ids
from outpace.canvas.rules.orders import score
from outpace.canvas.rules.rule import Rule, eligible, surest
from outpace.canvas.table import RowTable

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

    def writes(self, reading: Reading, row: CanvasRow | RowTable, memo: Any) -> Bools:
        """Return the best of the block."""
        del memo
        return self.best(reading, row, self.per_step)

    def best(self, reading: Reading, row: CanvasRow | RowTable, count: int | Ids) -> Bools:
        """Return [..., A] the `count` best places of the block, and those that reach the threshold."""
        is_open = eligible(reading, row)
        writes = surest(self.rank(reading), is_open, count)
        if self.threshold <= 1:
            writes |= is_open & (reading.confidence >= self.threshold)
        return writes

    def rank(self, reading: Reading) -> Floats:
        """Return [..., A] the scores, with Gumbel noise where places are drawn."""
        rank = score(self.order, reading)
        return rank if self.order_temp <= 0 else rank / self.order_temp - np.log(-np.log(reading.noise()))
