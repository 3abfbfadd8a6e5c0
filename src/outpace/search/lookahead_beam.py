"""Beams whose candidates are written on a little, so that a user's reward sees where they lead.

Paper: Huang, Sengupta, Bonadiman, Lai, Gupta, Pappas, Mansour, Kirchhoff, Roth (2024), arXiv 2402.06147, DeAL.
Guarantee: approximate; with weight 0 the text is that of `beam-search`, token for token.
Cost: a step is one forward of the beams, then `lookahead` tokens of each of its candidates (twice the beams) side by
    side; any exact method may draft for those. The reward is asked once a step.
Differences: the reward is added to the likelihood per token, in the order of candidates and of texts that have ended;
    candidates are the likeliest continuations of all beams, and looking ahead is greedy where temperature is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.papers import Paper
from outpace.search.base import Search
from outpace.search.rewards import NONE, Reward
from outpace.search.table import Leaf, Table
from outpace.search.token_beams import Merits, TokenBeams
from outpace.setting import setting

__all__ = ["PAPERS", "LookaheadBeam"]

DEAL = Paper(
    "DeAL: Decoding-time Alignment for Large Language Models",
    "Huang, Sengupta, Bonadiman, Lai, Gupta, Pappas, Mansour, Kirchhoff, Roth",
    2024,
    "2402.06147",
    259,
    "Learned rewards of harmlessness and helpfulness, which are a function of yours.",
    'outpace generate "Once upon a time" --search lookahead-beam -o beams=2 -o reward=FILE',
)
PAPERS = (DEAL,)


@dataclass(frozen=True)
class LookaheadBeam(TokenBeams):
    """Beam search with lookahead and rewards.

    Attributes:
        reward: how good a text is, candidates written on included; "" = none.
        weight: of the reward, in nats per token.
        lookahead: tokens that a candidate is written on before the reward sees it.

    Raises:
        ConfigError: a number out of range, or a reward that cannot be read.
    """

    reward: Reward = NONE
    weight: float = setting(1.0, least=0, is_finite=True)
    lookahead: int = setting(8, least=0)

    name: ClassVar[str] = "lookahead-beam"
    summary: ClassVar[str] = "Beams whose candidates are written on a little, so that a reward sees where they lead."
    paper: ClassVar[Paper] = DEAL

    def reduced(self) -> Search:
        """Return the search without a reward."""
        return replace(self, weight=0.0)

    def merits(self, table: Table, leaves: Sequence[Leaf]) -> Merits:
        """Return the weighted rewards of the texts that the candidates lead to."""
        if not self.weight or not self.reward:
            return (yield from super().merits(table, leaves))
        seen = leaves
        if self.lookahead:
            seen = yield from table.write(leaves, tokens=self.lookahead)
        return [self.weight * value for value in table.score(seen, self.reward)]
