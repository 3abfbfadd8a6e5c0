"""PC-Sampler's rule: confidence that is weighted by place, and calibrated by how frequent a token is anyway."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, CanvasRow, Floats
from outpace.canvas.rules.rule import Rule, eligible, surest
from outpace.canvas.table import RowTable

__all__ = ["Position"]

TINY = 1e-9  # added to every frequency: a token that the background never saw is not infinitely informative
LEAST = 1e-300


@dataclass(frozen=True, slots=True)
class Position(Rule):
    """Write the places of greatest exp(-weight * i) * min(-p log f(x), alpha), i counted from the generation's start.

    p is the probability of the drawn token x, f its frequency in a background text; without a background the second
    factor is p. Source: Huang et al. (2025),
    arXiv 2508.13021, and the authors' code for what the paper leaves open: i is counted over the whole generation, not
    the block.

    Attributes:
        weight: the paper's lambda; 0 = all places alike.
        alpha: what a token's calibrated confidence is cut to, nats.
        per_step: places written per step.
        background: [V] frequencies; None = none.
    """

    weight: float
    alpha: float
    per_step: int = 1
    background: Floats | None = field(default=None, compare=False)

    def writes(self, reading: Reading, row: CanvasRow | RowTable, memo: Any) -> Bools:
        """Return the best of the block."""
        del memo
        return surest(self.score(reading, row), eligible(reading, row), self.per_step)

    def score(self, reading: Reading, row: CanvasRow | RowTable) -> Floats:
        """Return [..., A] the score, or its logarithm where places are weighted: far away weights would underflow."""
        content = reading.confidence
        if self.background is not None:
            frequency = self.background[reading.tokens]
            content = np.minimum(-content * np.log(frequency + TINY), self.alpha)
        if self.weight == 0:
            return content
        ranked: Floats = np.log(np.maximum(content, LEAST)) - self.weight * (reading.places - row.prompt)
        return ranked
