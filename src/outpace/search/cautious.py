"""Where the model is unsure, several ways to the next punctuation are tried, and the likeliest is taken.

Paper: Wang, Ma, et al. (2025), arXiv 2507.03038, Cautious Next Token Prediction.
Guarantee: approximate; with an infinite threshold the text is plain decoding's, token for token.
Cost: unsure sentences are written up to `trials` times, side by side, from their first unsure token on.
Differences: the number of trials grows in a line with the entropy, from 2 above `threshold` to `trials` at `high`. A
    trial that was chosen is not looked at again before its punctuation; plain decoding's own text is one of the trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.papers import Paper
from outpace.search.base import Found, Search
from outpace.search.table import Leaf, Table
from outpace.setting import ordered, setting

__all__ = ["PAPERS", "Cautious"]

CNTP = Paper(
    "Cautious Next Token Prediction",
    "Wang, Ma, et al.",
    2025,
    "2507.03038",
    156,
    "Pictures; self-consistency over its texts.",
    'outpace generate "Once upon a time" --search cautious --temperature 1',
)
PAPERS = (CNTP,)


@dataclass(frozen=True)
class Cautious(Search):
    """Trials up to punctuation where the model is unsure.

    Attributes:
        threshold: entropy in nats above which trials are made; inf = never.
        high: entropy in nats at which all trials are made.
        trials: most texts side by side.
        marks: characters that end a trial.
        step: most tokens of a trial.

    Raises:
        ConfigError: a number out of range, or a threshold above `high`.
    """

    threshold: float = setting(1.5, least=0)
    high: float = setting(4.0, least=0)
    trials: int = setting(5, least=1)
    marks: str = ".,;:!?\n"
    step: int = setting(32, least=1)

    name: ClassVar[str] = "cautious"
    summary: ClassVar[str] = "Where the model is unsure, tries ways to the next punctuation; the likeliest stays."
    paper: ClassVar[Paper] = CNTP

    def __post_init__(self) -> None:
        """Hold the settings to their ranges and to each other."""
        super().__post_init__()
        if math.isfinite(self.threshold):
            ordered(self, "threshold", "high")

    @property
    def draws(self) -> bool:
        """Without noise all trials are one."""
        return True

    @property
    def num_rows(self) -> int:
        """The trials, and where they come from."""
        return self.trials + 1

    @property
    def noted(self) -> frozenset[str]:
        """How sure the model was, and how likely trials are."""
        return frozenset({"entropies", "log_probs"})

    def reduced(self) -> Search:
        """Return the search that is never cautious."""
        return replace(self, threshold=math.inf)

    def count(self, entropy: float) -> int:
        """Return how many trials are made at a place."""
        if entropy <= self.threshold or self.trials == 1:
            return 1
        share = (entropy - self.threshold) / (self.high - self.threshold) if self.high > self.threshold else 1.0
        return min(self.trials, 2 + int((self.trials - 2) * min(1.0, share)))

    def search(self, table: Table) -> Found:
        """Write from mark to mark; try again from the first place where the model was unsure."""
        marks, leaf = table.marked(self.marks), table.sample(0)
        while not leaf.is_over:
            start = len(leaf.written)
            trials = yield from table.write([leaf], tokens=self.step, marks=marks)
            places = [at for at in range(start, len(trials[0].written)) if trials[0].row.entropies[at] > self.threshold]
            if places and (count := self.count(trials[0].row.entropies[places[0]])) > 1:
                start = places[0]
                again = table.cut(trials[0], start)
                forks = [table.fork(again, number, number) for number in range(1, count)]
                trials += yield from table.write(forks, tokens=self.step, marks=marks)
            leaf = _likeliest(trials, start)
        return [leaf]


def _likeliest(leaves: Sequence[Leaf], start: int) -> Leaf:
    """Return the text of least perplexity from a place on."""
    means = [math.fsum(leaf.row.log_probs[start:]) / (len(leaf.written) - start) for leaf in leaves]
    return leaves[means.index(max(means))]
