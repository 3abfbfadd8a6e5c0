"""Beams of steps: each text is written on by a step in several ways, and a process reward says which of all go on.

Paper: Wang, Fang, Wan, Wen, Zhu, et al. (2024), arXiv 2410.09671, OpenR (section 3.3, beam search guided by a process
    reward).
Guarantee: approximate; one beam of one way is plain decoding, token for token.
Cost: beams * ways texts are written side by side, a step each; what is dropped was written in vain. The reward is asked
    once a step.
Differences: the reward judges whole texts so far, so that one which adds up or multiplies the rewards of steps does so
    itself; texts that have ended compete with those that go on. Texts that are equal are kept once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.papers import Paper
from outpace.search.base import Found, Search
from outpace.search.rewards import NONE, Reward
from outpace.search.table import Table
from outpace.setting import setting

__all__ = ["StepBeam"]


@dataclass(frozen=True)
class StepBeam(Search):
    """Beam search over steps.

    Attributes:
        beams: texts that go on.
        ways: in which each is written on.
        marks: characters that end a step.
        step: most tokens of a step.
        reward: how good texts are so far; "" = their mean log-probability per token.

    Raises:
        ConfigError: a number out of range, or a reward that cannot be read.
    """

    beams: int = setting(4, least=1)
    ways: int = setting(4, least=1)
    marks: str = "\n"
    step: int = setting(32, least=1)
    reward: Reward = NONE

    name: ClassVar[str] = "step-beam"
    summary: ClassVar[str] = "Writes texts on by a step in several ways; a process reward says which go on."
    paper: ClassVar[Paper | None] = None

    @property
    def draws(self) -> bool:
        """All texts are one without noise."""
        return self.beams * self.ways > 1

    @property
    def num_rows(self) -> int:
        """All texts of a step, and those that they come from."""
        return self.beams * (self.ways + 1)

    @property
    def noted(self) -> frozenset[str]:
        """Log-probabilities, where they decide."""
        return frozenset() if self.reward else frozenset({"log_probs"})

    def reduced(self) -> Search:
        """Return the search of one text."""
        return replace(self, beams=1, ways=1)

    def search(self, table: Table) -> Found:
        """Write all beams on by a step in every way, until the best texts have ended."""
        marks = table.marked(self.marks)
        leaves = [table.sample(number) for number in range(self.beams * self.ways)]
        while True:
            leaves = yield from table.write(leaves, tokens=self.step, marks=marks)
            leaves = list({tuple(leaf.row.tokens): leaf for leaf in reversed(leaves)}.values())[::-1]
            beams = table.best(leaves, table.score(leaves, self.reward), self.beams)
            if all(leaf.is_over for leaf in beams):
                return beams[:1]
            leaves = [
                table.fork(leaf, number)
                for leaf in beams
                for number in range(1 if leaf.is_over else self.ways)
            ]  # fmt: skip
