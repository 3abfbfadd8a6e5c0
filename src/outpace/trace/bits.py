"""From bits to rounds: how few rounds a text can be written in, given what each round may carry (Fu et al., 2025).

A token written with probability p carries -log2 p bits. A rule that writes only tokens of at least the threshold's
probability carries at most log2(1 / threshold) bits per place, so the rounds grow with the bits of the text, however
many places are open. A round in which the rule had to write below its threshold is not bound by it; such rounds are
counted as they are, and only the rest of the bits is divided by the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from outpace.canvas.row import CanvasRow, Floats
from outpace.errors import ConfigError

__all__ = ["RoundLog", "bits", "fewest_rounds", "fewest_rounds_for", "written"]


def bits(log_probs: Sequence[float] | Floats) -> float:
    """Return the information of tokens, in bits, from the natural logarithms of their probabilities when written."""
    return max(0.0, -float(np.sum(np.asarray(log_probs, dtype=np.float64))) / math.log(2))


def fewest_rounds(total: float, budget: float) -> int:
    """Return the least number of rounds that carry `total` bits at no more than `budget` bits each.

    Raises:
        ConfigError: a budget of 0 for more than 0 bits.
    """
    if total <= 0:
        return 0
    if budget <= 0:
        raise ConfigError(f"{total:.3g} bits cannot be written at {budget} bits per round.", "Give a larger budget.")
    return math.ceil(total / budget * (1 - 1e-9))  # rounding must not add a round


def fewest_rounds_for(rounds: Sequence[Sequence[float]], threshold: float, width: int) -> int:
    """Return a lower bound on the rounds of any run that writes these tokens under the rule's own budget.

    Args:
        rounds: per round of a run, the natural log-probabilities of the tokens written in it.
        threshold: the rule's: a round writes tokens of at least this probability, unless it finds none.
        width: places that a round may write at most.

    Returns:
        The rounds that had to write below the threshold, and at least as many for the bits of the others as
        `width * log2(1 / threshold)` bits per round allow. No run has fewer than this.

    Raises:
        ConfigError: a threshold outside (0, 1], or a width below 1.
    """
    if not 0 < threshold <= 1 or width < 1:
        raise ConfigError(f"threshold is {threshold} and width {width}.", "Use a threshold in (0, 1] and width >= 1.")
    cut = math.log(threshold) - 1e-9
    forced = sum(any(value < cut for value in values) for values in rounds)
    sure = [values for values in rounds if values and all(value >= cut for value in values)]
    budget = width * -math.log2(threshold)
    rest = sum(bits(values) for values in sure)
    return forced + (fewest_rounds(rest, budget) if budget > 0 else len(sure))


def written(before: CanvasRow | None, after: CanvasRow) -> Floats:
    """Return the log-probabilities of the tokens that a step wrote; `before` None = all that is written so far."""
    is_new = after.log_probs != 0 if before is None else after.tokens != before.tokens
    found: Floats = after.log_probs[is_new]
    return found


@dataclass
class RoundLog:
    """Watches a run (`watch=log`) and notes what each round wrote.

    Attributes:
        rounds: by row, in the order in which rows were first seen: per step, the log-probabilities it wrote.
    """

    rounds: list[list[list[float]]] = field(default_factory=list)
    _rows: dict[int, tuple[int, CanvasRow]] = field(default_factory=dict)

    def __call__(self, rows: Sequence[Any], outcome: Any) -> None:
        """Note one step."""
        for row, step in zip(rows, outcome.decision.carry, strict=True):
            if step is None:  # the row broke
                continue
            after: CanvasRow = step.row
            number, before = self._rows.get(id(row), (len(self.rounds), None))
            if before is None:
                self.rounds.append([])
            self.rounds[number].append(written(before, after).tolist())
            self._rows[id(row)] = (number, after)
