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
from outpace.draft.stochastic import Shape
from outpace.errors import ConfigError
from outpace.methods.base import Paper
from outpace.methods.speculative.sampled import LARGEST, SampledTree, check_branches
from outpace.types import Decision, Proposal, Scores, View

__all__ = ["Rsd"]


@dataclass(frozen=True)
class Rsd(SampledTree):
    """Recursive speculative decoding.

    Attributes:
        draft: the drafter: a zoo name, directory or hub id; "auto" = the one that the target's card names.
        beam: sequences per level of the stochastic beam search (RSD-S).
        draft_len: levels of it.
        branches: children per node, level by level, instead of a beam (RSD-C); empty = the beam.

    Raises:
        ConfigError: a number is below 1, or there are too many nodes.
    """

    beam: int = 3
    draft_len: int = 4
    branches: tuple[int, ...] = ()

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

    def __post_init__(self) -> None:
        if self.beam < 1 or not 1 <= self.draft_len <= LARGEST:
            raise ConfigError(
                f"beam is {self.beam} and draft_len {self.draft_len}.", f"Both must be from 1 to {LARGEST}."
            )
        if self.branches:
            check_branches(self.branches)
        elif self.shape.width > LARGEST:
            raise ConfigError(f"The beam makes {self.shape.width} nodes.", f"Use at most {LARGEST}.")

    @property
    def shape(self) -> Shape:
        """A stochastic beam, or a tree of the given branches."""
        if self.branches:
            return Shape(self.branches, has_replacement=False)
        return Shape((self.beam,) * self.draft_len, has_replacement=False, beam=self.beam)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Drafter) -> Decision:
        """Recursive rejection sampling: siblings in turn, from the root down."""
        del state
        return multi_candidate(proposal, scores, view)
