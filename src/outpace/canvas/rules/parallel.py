"""Writing several places at once where the model is sure of all of them: Fast-dLLM's factor, and bounded entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from outpace.canvas.reading import Reading
from outpace.canvas.row import CanvasRow
from outpace.canvas.rules.orders import score
from outpace.canvas.rules.rule import Choice, Rule, eligible, surest

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

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        """Decide for one row."""
        del memo
        is_open = eligible(reading, row)
        sure = np.sort(reading.confidence[is_open])[::-1]
        rank = np.arange(1, len(sure) + 1)
        fails = np.flatnonzero(sure < 1 - self.factor / (rank + 1))
        count = int(fails[0]) if len(fails) else len(sure)
        return Choice(surest(reading.confidence, is_open, max(count, 1)))


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

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        """Decide for one row."""
        del memo
        is_open = eligible(reading, row)
        rank = score(self.order, reading)
        places = np.flatnonzero(is_open)
        order = places[np.argsort(-rank[places], kind="stable")]
        entropy = reading.entropy[order]
        spent = np.cumsum(entropy) - np.maximum.accumulate(entropy)
        # The first place spends nothing, whatever rounding says.
        count = max(int(np.count_nonzero(spent <= self.gamma)), 1)
        writes = np.zeros(len(rank), dtype=np.bool_)
        writes[order[:count]] = True
        return Choice(writes)
