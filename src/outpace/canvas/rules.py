"""Unmasking rules: which of the undecided places are written now, and which written ones are masked again.

A rule is a frozen record of settings and one pure function of what the model says and of the row; what it remembers
from step to step travels in the row's memo. Rules of single papers lie in files of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, CanvasRow, Floats, Ids

__all__ = ["Choice", "Ranked", "Rule", "eligible", "surest"]


@dataclass(slots=True)
class Choice:
    """What a rule decided.

    Attributes:
        writes: [A] which of the reading's places are written; at least one of them, unless something is masked again
            (a rule that masks again has to end by itself).
        tokens: [A] other tokens to write than those drawn, or None.
        masked: places to mask again; none that the caller gave.
        memo: what the rule remembers from here on.
    """

    writes: Bools
    tokens: Ids | None = None
    masked: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    memo: Any = None


class Rule(Protocol):
    """What a sampler is made of."""

    def choose(self, reading: Reading, row: CanvasRow) -> Choice:
        """Decide for one row. `row.end` is where its block ends; a rule may write beyond it only if it means to."""
        ...


def surest(score: Floats, is_open: Bools, count: int) -> Bools:
    """Return [A] the `count` open places of greatest score; ties go to the first place, NaN comes last."""
    ranked = np.where(is_open, np.nan_to_num(score, nan=-np.inf), -np.inf)
    order = np.argsort(-ranked, kind="stable")[: max(count, 0)]
    chosen = np.zeros(len(score), dtype=np.bool_)
    chosen[order] = True
    return chosen & is_open


def eligible(reading: Reading, row: CanvasRow) -> Bools:
    """Return [A] the places of the block in work, without end tokens that have to wait; never none."""
    inside = reading.within(row.end)
    return inside if reading.waits is None else inside & ~reading.waits


@dataclass(frozen=True, slots=True)
class Ranked:
    """Write the best-ranked places of the block: the common rule of LLaDA, Dream, Fast-dLLM and MaskGIT.

    Attributes:
        order: "confidence" (probability of the drawn token), "margin" (gap of the two greatest probabilities),
            "entropy" (least first), "random" or "left" (left to right).
        per_step: places written per step, at least; fewer where fewer are left.
        threshold: places whose confidence reaches it are written as well; above 1 = none.
        order_temp: 0 = the best; above, places are drawn by softmax(score / order_temp), without replacement (Dream's
            `alg_temp`).
    """

    order: str = "confidence"
    per_step: int = 1
    threshold: float = 2.0
    order_temp: float = 0.0

    def choose(self, reading: Reading, row: CanvasRow) -> Choice:
        """Decide for one row."""
        is_open = eligible(reading, row)
        writes = surest(self.rank(reading), is_open, self.per_step)
        if self.threshold <= 1:
            writes |= is_open & (reading.confidence >= self.threshold)
        return Choice(writes)

    def rank(self, reading: Reading) -> Floats:
        """Return [A] the scores, with Gumbel noise where places are drawn."""
        score = self.score(reading)
        return score if self.order_temp <= 0 else score / self.order_temp - np.log(-np.log(reading.noise()))

    def score(self, reading: Reading) -> Floats:
        """Return [A] what places are ranked by, greatest first."""
        if self.order == "margin":
            return reading.top_two[:, 0] - reading.top_two[:, 1]
        if self.order == "entropy":
            return -reading.entropy
        if self.order == "random":
            return reading.noise()
        if self.order == "left":
            return -reading.places.astype(np.float64)
        return reading.confidence
