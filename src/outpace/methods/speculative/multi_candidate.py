"""A small model draws several candidates per position; they are tested in turn, each against what is left.

Paper: Yang, Huang, Dai, Chen (2024), arXiv 2401.06706, verification with and without replacement.
Guarantee: distribution (exact at temperature 0).
Cost: at most 1 target forward per emitted token, over the whole tree; one draft forward per level.
Differences: candidates branch at any level, as the setting says; equal siblings are stood on at once, so that the
    children of all of them are candidates; at temperature 0 siblings are the likeliest tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.accept import multi_candidate
from outpace.draft.reading import Drafter
from outpace.draft.stochastic import Growth
from outpace.methods.base import Paper
from outpace.methods.speculative.sampled import BranchedTree
from outpace.types import Decision, Proposal, Scores, View

__all__ = ["MultiCandidate"]


@dataclass(frozen=True)
class MultiCandidate(BranchedTree):
    """Multi-candidate speculative decoding.

    Attributes:
        has_replacement: draw siblings independently; False = without replacement, of which more are accepted.

    Raises:
        ConfigError: the branches have no level, a number below 1, or too many nodes.
    """

    has_replacement: bool = False

    name: ClassVar[str] = "multi-candidate"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A small model draws several candidates; the ratio test goes from one to the next."
    paper: ClassVar[Paper] = Paper(
        "Multi-Candidate Speculative Decoding",
        "Yang, Huang, Dai, Chen",
        2024,
        "2401.06706",
        295,
        "The trees tuned per model and data set; ours have the branches that are set.",
    )

    @property
    def growth(self) -> Growth:
        """A tree of the given branches."""
        return Growth(self.branches, self.has_replacement)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Drafter) -> Decision:
        """Test siblings in turn, from the root down."""
        del state
        return multi_candidate(proposal, scores, view)
