"""A block-diffusion model drafts the rest of its block at once; its causal twin checks.

Paper: Li et al. (2025), arXiv 2510.02358 (DiffuSpec): a masked model drafts many tokens in one forward, and the length
    of the drafts follows acceptance.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token; per step `steps` forwards of the drafter over the block that holds the
    end of the text, and as many over the next one where few places are left; the drafter's weights and cache.
Differences: the paper searches the likeliest tokens of all places for a path that reads well from left to right, which
    the method `diffuspec` does; here every place draws with the target's noise, which gives plain decoding's own text
    at any temperature. Blocks are the drafter's own, and their finished ones stay in its cache exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.canvas.block_drafter import BlockDrafter, masked_drafting
from outpace.methods.base import Paper, chain
from outpace.methods.speculative.drafted import AdaptiveDraft
from outpace.setting import setting
from outpace.types import Context, Needs, Proposal, View

__all__ = ["BlockDraft"]


@dataclass(frozen=True)
class BlockDraft(AdaptiveDraft):
    """Speculative decoding with a masked model as the drafter.

    Attributes:
        draft: the drafter: the name, directory or hub id of a masked model of the same vocabulary; "own" = the target
            itself, where it was taught blocks of masks behind causal text.
        steps: forwards of the drafter per block; each writes its share of the masks, the surest first.
        fewest: where fewer drafts than this fill a block, the next block is drafted as well.
        min_confidence: stop before a place where no token is this likely (0 = never).

    Raises:
        ConfigError: a length or number of steps below 1, a negative `fewest`, or a confidence outside [0, 1].
    """

    draft: str = "stories-block"
    draft_len: int = setting(16, least=1)
    steps: int = setting(1, least=1)
    fewest: int = setting(4, least=0, note="0 never goes on to a next block")
    min_confidence: float = setting(0.0, least=0, most=1)

    name: ClassVar[str] = "block-draft"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A block-diffusion model drafts the rest of its block in one forward; the target checks."
    paper: ClassVar[Paper] = Paper(
        "DiffuSpec: Unlocking Diffusion Language Models for Speculative Decoding",
        "Li et al.",
        2025,
        "2510.02358",
        left_out="The path search over the likeliest tokens of all places (the method `diffuspec`).",
    )

    @property
    def needs(self) -> Needs:
        """A causal target, and a masked model of the same vocabulary or blocks of the target's own."""
        return masked_drafting(self.draft, self.draft_len)

    def begin(self, context: Context) -> BlockDrafter:
        """Give the drafter an empty cache for the joining rows; it holds nothing but text."""
        return BlockDrafter.begin(context, "draft", self.draft_len)

    def grow(self, view: View, drafter: BlockDrafter, reach: list[int]) -> Proposal:
        """Fill the block."""
        return chain(view, drafter.draft(view, reach, self.steps, self.fewest, self.min_confidence), self.name)
