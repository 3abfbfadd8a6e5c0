"""A small model draws several continuations; the first that passes a test of their number is followed.

Paper: Sun, Suresh, Ro, Beirami, Jain, Yu (2023), arXiv 2310.15141, algorithms 2 and 3 (k-seq).
Guarantee: distribution (exact at temperature 0).
Cost: at most 1 target forward per emitted token, over all drafts; one draft forward per level; per level a bisection.
Differences: drafts are forwarded as a tree of chains instead of a batch; at temperature 0 the drafts begin with the
    likeliest tokens, since independent ones would be equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.accept import spectr
from outpace.draft.reading import Drafter
from outpace.draft.stochastic import Growth
from outpace.methods.base import Paper
from outpace.methods.speculative.sampled import LARGEST, SampledTree
from outpace.setting import setting
from outpace.types import Decision, Proposal, Scores, View

__all__ = ["SpecTr"]


@dataclass(frozen=True)
class SpecTr(SampledTree):
    """SpecTr with k-seq.

    Attributes:
        num_drafts: independent continuations per step.
        draft_len: tokens of each.

    Raises:
        ConfigError: a number is below 1, or there are too many nodes.
    """

    num_drafts: int = setting(3, least=1, most=LARGEST)
    draft_len: int = setting(4, least=1, most=LARGEST)

    name: ClassVar[str] = "spectr"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A small model draws several continuations; optimal transport says how often one stays."
    paper: ClassVar[Paper] = Paper(
        "SpecTr: Fast Speculative Decoding via Optimal Transport",
        "Sun, Suresh, Ro, Beirami, Jain, Yu",
        2023,
        "2310.15141",
        68,
        "The optimal transport plan by linear programming, which takes time exponential in the number of drafts.",
    )

    @property
    def growth(self) -> Growth:
        """Chains from the root."""
        return Growth((self.num_drafts, *[1] * (self.draft_len - 1)))

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Drafter) -> Decision:
        """Choose by k-seq among the drafts that agree with the text so far."""
        del state
        return spectr(proposal, scores, view)
