"""Several texts side by side, the best of them returned: as a reward judges, or the model itself.

Paper: Wang, Fang, Wan, Wen, Zhu, et al. (2024), arXiv 2410.09671, OpenR (section 3.3, best of n).
Guarantee: approximate: the text is one of those that plain decoding draws with sample numbers 0 to n - 1; n=1 is plain
    decoding, token for token.
Cost: the prompt is read once, and each step is one forward of all texts that have not ended; a row takes memory for
    what it wrote. The reward is asked once.
Differences: without a reward, texts are compared by their mean log-probability per token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.errors import ConfigError
from outpace.papers import Paper
from outpace.search.base import Found, Search
from outpace.search.rewards import NONE, Reward
from outpace.search.table import Table
from outpace.setting import setting

__all__ = ["PAPERS", "BestOf"]

OPENR = Paper(
    "OpenR: An Open Source Framework for Advanced Reasoning with Large Language Models",
    "Wang, Fang, Wan, Wen, Zhu, et al.",
    2024,
    "2410.09671",
    5,
    "Training of policy and process reward models.",
    'outpace generate "Once upon a time" --search best-of -o n=4',
)
PAPERS = (OPENR,)


@dataclass(frozen=True)
class BestOf(Search):
    """Best of n.

    Attributes:
        n: texts that are written.
        reward: how good texts are; "" = their mean log-probability per token.
        n_best: texts that are returned, the best first.

    Raises:
        ConfigError: a number out of range, more texts returned than written, or a reward that cannot be read.
    """

    n: int = setting(4, least=1)
    reward: Reward = NONE
    n_best: int = setting(1, least=1)

    name: ClassVar[str] = "best-of"
    summary: ClassVar[str] = "Writes n texts side by side and returns those that a reward, or the model, likes best."
    paper: ClassVar[Paper] = OPENR

    def __post_init__(self) -> None:
        """Hold the settings to their ranges and to each other."""
        super().__post_init__()
        if self.n_best > self.n:
            raise ConfigError(f"n_best is {self.n_best}, but only {self.n} texts are written.", "Write more.")

    @property
    def draws(self) -> bool:
        """All texts are one without noise."""
        return self.n > 1

    @property
    def num_rows(self) -> int:
        """All texts."""
        return self.n

    @property
    def num_texts(self) -> int:
        """The best ones."""
        return self.n_best

    @property
    def noted(self) -> frozenset[str]:
        """Log-probabilities, where they decide."""
        return frozenset() if self.reward else frozenset({"log_probs"})

    def reduced(self) -> Search:
        """Return the search of one text."""
        return replace(self, n=1, n_best=1)

    def search(self, table: Table) -> Found:
        """Write all texts to their end, and return the best."""
        leaves = yield from table.write([table.sample(number) for number in range(self.n)])
        return table.best(leaves, table.score(leaves, self.reward), self.n_best)
