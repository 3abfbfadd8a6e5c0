"""When a figure of a training settles, and how sure that is: a bootstrap over the sentences that it was taken on.

Source: Koehn (2004), "Statistical significance tests for machine translation evaluation": resampled test sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Settled", "later", "reached", "settled"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Settled:
    """The step from which a figure stays at a share of its last value or above.

    Attributes:
        step: on all sentences.
        low, high: 95% of the resampled sets settle between these.
        steps: of each resampled set; the n-th is the same set for every figure of the same sentences.
    """

    step: int
    low: int
    high: int
    steps: tuple[int, ...]


def reached(values: Sequence[float] | Floats, share: float = 0.95) -> int:
    """Return the first place from which values stay at a share of the last one or above; all are at least 0."""
    found = np.asarray(values, dtype=np.float64)
    below = np.flatnonzero(found < share * found[-1])
    return int(below[-1]) + 1 if len(below) else 0


def settled(
    counts: Sequence[Floats],
    value: Callable[[Floats], float],
    steps: Sequence[int],
    *,
    share: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Settled:
    """Tell when a figure settles.

    Args:
        counts: per checkpoint [sentences, K], whose sums over the sentences give the figure.
        value: the figure of such sums [K]; the higher the better, at least 0.
        steps: of the checkpoints.
        share: of the last value.
        resamples: sets of sentences, drawn with replacement.
        seed: of the draws.
    """
    number = len(counts[0])
    draws = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), resamples)
    sums = [np.concatenate([own.sum(0)[None], draws @ own]) for own in counts]
    places = [reached([value(own[row]) for own in sums], share) for row in range(resamples + 1)]
    first, *others = (steps[place] for place in places)
    low, high = np.quantile(others, (0.025, 0.975), method="nearest")
    return Settled(first, int(low), int(high), tuple(others))


def later(one: Settled, other: Settled) -> float:
    """Return the share of resampled sets on which one figure settles later than another; a tie counts half."""
    a, b = np.array(one.steps), np.array(other.steps)
    return float(((a > b) + 0.5 * (a == b)).mean())
