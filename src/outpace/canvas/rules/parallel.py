"""Writing several places at once where the model is sure of all of them: Fast-dLLM's factor, and bounded entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, CanvasRow
from outpace.canvas.rules.orders import score
from outpace.canvas.rules.rule import Rule, eligible, first_ranked, ranks, surest
from outpace.canvas.table import RowTable

__all__ = ["EntropyBounded", "Factor"]


@dataclass(frozen=True, slots=True)
class Factor(Rule):
    """Write the n surest places, n the largest number such that the r-th surest has c_r >= 1 - factor / (r + 1).

    The bound holds for every r up to n; the surest place is always written. Source: Wu et al. (2025), Fast-dLLM,
    arXiv 2505.22618, section 3.3, theorem 1, as the condition (n + 1)(1 - c_n) < factor; the authors' code looks at
    every rank on the way, which is what is done here.

    Attributes:
        factor: how far parallel writing is trusted; near 0 = one place per step.
    """

    factor: float

    def writes(self, reading: Reading, row: CanvasRow | RowTable, memo: Any) -> Bools:
        """Return as many as the bound holds for, counted from the surest."""
        del memo
        is_open = eligible(reading, row)
        sure = -np.sort(-np.where(is_open, reading.confidence, -np.inf), axis=-1)
        holds = sure >= 1 - self.factor / (np.arange(2, sure.shape[-1] + 2))
        count = np.logical_and.accumulate(holds, axis=-1).sum(-1, keepdims=True)
        return surest(reading.confidence, is_open, np.maximum(count, 1))


@dataclass(frozen=True, slots=True)
class EntropyBounded(Rule):
    """Write the k best-ranked places, k the largest number whose entropies sum to at most `gamma` without the greatest.

    The sum without the greatest bounds how much the places' joint law may differ from the product of their laws, so
    one place may always be written. Source: Ben-Hamu et al. (2025), arXiv 2505.24857.

    Attributes:
        gamma: the bound, in nats; 0 = one place per step (more only where entropies are 0).
        order: how places are ranked, one of `ORDERS`.
    """

    gamma: float
    order: str = "entropy"

    def writes(self, reading: Reading, row: CanvasRow | RowTable, memo: Any) -> Bools:
        """Return as many as the bound holds for, counted from the best."""
        del memo
        is_open = eligible(reading, row)
        order = ranks(score(self.order, reading), is_open)
        # Places that are not open stand last, and spend nothing.
        entropy = np.take_along_axis(np.where(is_open, reading.entropy, 0.0), order, -1)
        spent = np.cumsum(entropy, axis=-1) - np.maximum.accumulate(entropy, axis=-1)
        count = np.count_nonzero(spent <= self.gamma, axis=-1, keepdims=True)
        # The first place spends nothing, whatever rounding says.
        return first_ranked(order, np.maximum(count, 1)) & is_open
