"""A small model draws a chain, which is accepted as a block: up to the last position that passes.

Paper: Sun, Mendlovic, Leviathan, Aharoni, Ro, Beirami, Suresh (2024), arXiv 2403.10444, algorithm 2.
Guarantee: distribution (exact at temperature 0).
Cost: at most 1 target forward per emitted token; one draft forward per drafted token. Never accepts less than the
    rejection rule of `draft-model`.
Differences: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.accept import block_verification
from outpace.draft.reading import Drafter
from outpace.draft.stochastic import Growth
from outpace.methods.base import Paper
from outpace.methods.speculative.sampled import LARGEST, SampledTree
from outpace.setting import setting
from outpace.types import Decision, Proposal, Scores, View

__all__ = ["BlockVerification"]


@dataclass(frozen=True)
class BlockVerification(SampledTree):
    """Block verification.

    Attributes:
        draft_len: tokens drafted per step.

    Raises:
        ConfigError: the length is below 1.
    """

    draft_len: int = setting(4, least=1, most=LARGEST)

    name: ClassVar[str] = "block-verification"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A small model draws a chain; it is verified as a block, which accepts the most possible."
    paper: ClassVar[Paper] = Paper(
        "Block Verification Accelerates Speculative Decoding",
        "Sun, Mendlovic, Leviathan, Aharoni, Ro, Beirami, Suresh",
        2024,
        "2403.10444",
        left_out="The greedy variant that takes the last passing position of all and repairs the law in later steps.",
    )

    @property
    def growth(self) -> Growth:
        """A chain."""
        return Growth((1,) * self.draft_len)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Drafter) -> Decision:
        """Verify the block."""
        del state
        return block_verification(proposal, scores, view)
