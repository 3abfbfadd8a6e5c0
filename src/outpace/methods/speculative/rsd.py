"""A small model draws a tree without replacement, so that no draft is spent twice on one token.

Paper: Jeon, Gagrani, Goel, Park, Lee, Lott (2024), arXiv 2402.14160: RSD-C (constant branching) and RSD-S (stochastic
    beam search), with recursive rejection sampling.
Guarantee: distribution (exact at temperature 0).
Cost: at most 1 target forward per emitted token, over the whole tree; one draft forward per level.
Differences: at temperature 0 the tree holds the likeliest tokens, or the best beams.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.accept import multi_candidate
from outpace.draft.reading import Drafter
from outpace.draft.stochastic import Growth
from outpace.methods.base import Paper
from outpace.methods.speculative.sampled import LARGEST, SampledTree
from outpace.setting import setting
from outpace.types import Decision, Proposal, Scores, View

__all__ = ["Rsd"]


@dataclass(frozen=True)
class Rsd(SampledTree):
    """Recursive speculative decoding.

    Attributes:
        beam: sequences per level of the stochastic beam search (RSD-S).
        draft_len: levels of it.
        branches: children per node, level by level, instead of a beam (RSD-C); empty = the beam.

    Raises:
        ConfigError: a number is below 1, or there are too many nodes.
    """

    beam: int = setting(3, least=1, most=LARGEST)
    draft_len: int = setting(4, least=1, most=LARGEST)
    branches: tuple[int, ...] = setting((), least=1)

    name: ClassVar[str] = "rsd"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A small model draws a tree without replacement: siblings never repeat."
    paper: ClassVar[Paper] = Paper(
        "Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement",
        "Jeon, Gagrani, Goel, Park, Lee, Lott",
        2024,
        "2402.14160",
        208,
    )

    @property
    def growth(self) -> Growth:
        """A stochastic beam, or a tree of the given branches."""
        if self.branches:
            return Growth(self.branches, has_replacement=False)
        return Growth((self.beam,) * self.draft_len, has_replacement=False, beam=self.beam)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Drafter) -> Decision:
        """Recursive rejection sampling: siblings in turn, from the root down."""
        del state
        return multi_candidate(proposal, scores, view)
