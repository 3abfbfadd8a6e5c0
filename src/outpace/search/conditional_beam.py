"""Beams that must meet a predicate: what cannot meet it any more is dropped, and no other text is returned.

Paper: Yoshida (2023), Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers
    (thesis, arXiv 2408.16241, chapter on conditional beam search).
Guarantee: approximate; without a predicate the text is that of `beam-search`, token for token.
Cost: that of beam search, and the predicates for twice the beams a step.
Differences: the paper trains a classifier to tell of a beginning whether its end will meet the predicate; here a second
    predicate, of beginnings, may say so (`early`). Where no text meets the predicate, the best that beams found is
    returned with a note.
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

__all__ = ["PAPERS", "ConditionalBeam"]

THESIS = Paper(
    "Making the Most of your Model: Methods for Finetuning and Applying Pretrained Transformers",
    "Yoshida",
    2023,
    "2408.16241",
    82,
    "The finetuning methods; the classifier of beginnings, in whose place a predicate stands.",
    'outpace generate "Once upon a time" --search conditional-beam -o predicate=outpace.search.checks:fresh',
)
PAPERS = (THESIS,)


@dataclass(frozen=True)
class ConditionalBeam(TokenBeams):
    """Beam search under a condition.

    Attributes:
        predicate: what a text that has ended must meet: true or a number above 0; "" = nothing.
        early: what beginnings must meet to go on; "" = nothing. Ended texts are not asked.

    Raises:
        ConfigError: a number out of range, or a predicate that cannot be read.
    """

    predicate: Reward = NONE
    early: Reward = NONE

    name: ClassVar[str] = "conditional-beam"
    summary: ClassVar[str] = "Beam search that returns only texts which meet a predicate."
    paper: ClassVar[Paper] = THESIS

    def reduced(self) -> Search:
        """Return the search without a condition."""
        return replace(self, predicate=NONE, early=NONE)

    def merits(self, table: Table, leaves: Sequence[Leaf]) -> Merits:
        """Return 0 for texts that meet what they must, -inf for others."""
        yield from ()
        merits = [0.0] * len(leaves)
        for reward, is_over in ((self.predicate, True), (self.early, False)):
            asked = [at for at, leaf in enumerate(leaves) if reward and leaf.is_over is is_over]
            values = table.score([leaves[at] for at in asked], reward) if asked else []
            for at, value in zip(asked, values, strict=True):
                merits[at] = 0.0 if value > 0 else float("-inf")
        return merits
