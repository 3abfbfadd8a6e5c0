"""Steps are drawn by what they lead to: each candidate is written on, and weighed by how likely the model finds that.

Paper: Ma, Zhao, Zhang, He, Kong (2024), arXiv 2410.17195, Predictive-Decoding.
Guarantee: approximate; with foresight 0 the text is plain decoding's, token for token.
Cost: each step writes `ways` steps, and `foresight` tokens behind each, side by side; one step of one is kept.
Differences: weights are the mean log-probability of the foresight's tokens, so that a text that ends within it is not
    favoured for being short; steps end at `marks` or after `step` tokens, and each step looks ahead anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.papers import Paper
from outpace.search.base import Found, Search
from outpace.search.table import Leaf, Table
from outpace.setting import setting

__all__ = ["PAPERS", "Foresight"]

PREDICTIVE = Paper(
    "Non-myopic Generation of Language Model for Reasoning and Planning",
    "Ma, Zhao, Zhang, He, Kong",
    2024,
    "2410.17195",
    23,
    "Agents, whose environment answers.",
    'outpace generate "Once upon a time" --search foresight --temperature 1',
)
PAPERS = (PREDICTIVE,)


@dataclass(frozen=True)
class Foresight(Search):
    """Sampling that is weighed by rollouts.

    Attributes:
        ways: steps that are drawn from each text.
        foresight: tokens that each is written on; 0 = plain decoding.
        tau: what log-probabilities per token are divided by; less = the best way nearly always.
        marks: characters that end a step; "" = none do.
        step: most tokens of a step.

    Raises:
        ConfigError: a number out of range.
    """

    ways: int = setting(4, least=1)
    foresight: int = setting(16, least=0)
    tau: float = setting(0.1, above=0, is_finite=True)
    marks: str = "\n"
    step: int = setting(8, least=1)

    name: ClassVar[str] = "foresight"
    summary: ClassVar[str] = "Draws steps by how likely the model finds what follows them."
    paper: ClassVar[Paper] = PREDICTIVE

    @property
    def draws(self) -> bool:
        """Without noise all ways are one."""
        return True

    @property
    def num_rows(self) -> int:
        """The steps, and what follows each."""
        return 2 * self.ways + 1

    @property
    def noted(self) -> frozenset[str]:
        """How likely what follows is."""
        return frozenset({"log_probs"})

    def reduced(self) -> Search:
        """Return the search that looks nowhere."""
        return replace(self, foresight=0)

    def search(self, table: Table) -> Found:
        """Draw step after step."""
        marks, leaf = table.marked(self.marks), table.sample(0)
        if not self.foresight:
            return (yield from table.write([leaf]))
        while not leaf.is_over:
            forks = [table.fork(leaf, number, number) for number in range(self.ways)]
            steps = yield from table.write(forks, tokens=self.step, marks=marks)
            seen = yield from table.write(steps, tokens=self.foresight)
            weights = [_mean(step, one) / self.tau for step, one in zip(steps, seen, strict=True)]
            leaf = steps[table.drawn(leaf, weights)]
        return [leaf]


def _mean(step: Leaf, seen: Leaf) -> float:
    """Return the mean log-probability of what was written behind a step; of the whole text, where it ends with it."""
    start = len(step.written) if len(seen.written) > len(step.written) else 0
    return math.fsum(seen.row.log_probs[start:]) / (len(seen.written) - start)
