"""PC-Sampler's rule: confidence that is weighted by place, and calibrated by how frequent a token is anyway."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from outpace.canvas.reading import Reading
from outpace.canvas.row import CanvasRow, Floats
from outpace.canvas.rules import Choice, eligible, surest

__all__ = ["Position"]

TINY = 1e-9  # added to every frequency: a token that the background never saw is not infinitely informative
LEAST = 1e-300


@dataclass(frozen=True, slots=True)
class Position:
    """Write the places of greatest exp(-weight * i) * min(-p log f(x), alpha), i counted from the generation's start.

    p is the probability of the drawn token x, f its frequency in a background text; without a background the second
    factor is p. The row's memo holds the background's frequencies, [V], or None. Source: Huang et al. (2025),
    arXiv 2508.13021, and the authors' code for what the paper leaves open: i is counted over the whole generation, not
    the block.

    Attributes:
        weight: the paper's lambda; 0 = all places alike.
        alpha: what a token's calibrated confidence is cut to, nats.
        per_step: places written per step.
    """

    weight: float
    alpha: float
    per_step: int = 1

    def choose(self, reading: Reading, row: CanvasRow) -> Choice:
        """Decide for one row."""
        writes = surest(self.score(reading, row), eligible(reading, row), self.per_step)
        return Choice(writes, memo=row.memo)

    def score(self, reading: Reading, row: CanvasRow) -> Floats:
        """Return [A] the score, or its logarithm where places are weighted: far away the weight would underflow."""
        content = reading.confidence
        if row.memo is not None:
            frequency = np.asarray(row.memo)[reading.tokens]
            content = np.minimum(-content * np.log(frequency + TINY), self.alpha)
        if self.weight == 0:
            return content
        ranked: Floats = np.log(np.maximum(content, LEAST)) - self.weight * (reading.places - row.prompt)
        return ranked
