"""What places are ranked by, greatest first: the one list of orders."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from outpace.canvas.reading import Reading
from outpace.canvas.row import Floats

__all__ = ["ORDERS", "score"]


def _margin(reading: Reading) -> Floats:
    return reading.top_two[..., 0] - reading.top_two[..., 1]


_SCORES: dict[str, Callable[[Reading], Floats]] = {
    "confidence": lambda reading: reading.confidence,
    "margin": _margin,
    "entropy": lambda reading: -reading.entropy,
    "random": lambda reading: reading.noise(),
    "left": lambda reading: -reading.places.astype(np.float64),
}
ORDERS = tuple(_SCORES)
"""By the names that users write: the probability of the drawn token, the gap of the two greatest probabilities, the
least entropy, chance, and from left to right."""


def score(order: str, reading: Reading) -> Floats:
    """Return [..., A] what a reading's places are ranked by, greatest first."""
    return _SCORES[order](reading)
