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
from typing import TYPE_CHECKING

from outpace.errors import ConfigError

if TYPE_CHECKING:
    from outpace.run.row import Row
    from outpace.types import Outcome

__all__ = ["RoundLog", "bits", "fewest_rounds", "fewest_rounds_for"]


def bits(log_probs: Sequence[float]) -> float:
    """Return the information of tokens, in bits, from the natural logarithms of their probabilities when written."""
    return max(0.0, -math.fsum(log_probs) / math.log(2))


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


@dataclass
class RoundLog:
    """Watches a run on canvases (`watch=log`) and notes what each round wrote.

    Attributes:
        rounds: by row, in the order in which rows were first seen: per round, the log-probabilities it wrote. A step
            that looks ahead makes several rounds.
    """

    rounds: list[list[list[float]]] = field(default_factory=list)
    _numbers: dict[int, int] = field(default_factory=dict)

    def __call__(self, rows: Sequence[Row], outcome: Outcome) -> None:
        """Note one step.

        Raises:
            ConfigError: the method does not say how likely the tokens were that it wrote.
        """
        for row, report in zip(rows, outcome.reports, strict=True):
            if len(report.log_probs) < len(report.places):
                raise ConfigError("A log of rounds was asked for, but no canvas is written.", "Use a diffusion method.")
            number = self._numbers.setdefault(id(row), len(self.rounds))
            if number == len(self.rounds):
                self.rounds.append([])
            for at in range(report.num_rounds):
                written = zip(report.rounds, report.log_probs, strict=True)
                self.rounds[number].append([value for round_, value in written if round_ == at])
