"""A block-diffusion model drafts the rest of its block at once; its causal twin checks.

Paper: Li et al. (2025), arXiv 2510.02358 (DiffuSpec): a masked model drafts many tokens in one forward, and the length
    of the drafts follows acceptance.
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token; per step `steps` forwards of the drafter over the block that holds the
    end of the text, and as many over the next one where few places are left; the drafter's weights and cache.
Differences: the paper searches the likeliest tokens of all places for a path that reads well from left to right; here
    every place draws with the target's noise, which gives plain decoding's own text at any temperature. Blocks are the
    drafter's own, and their finished ones stay in its cache exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.canvas.block_drafter import BlockDrafter
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, chain, nothing
from outpace.schedule import next_length
from outpace.types import Context, Needs, Outcome, Proposal, View

__all__ = ["BlockDraft", "BlockDraftState"]


@dataclass
class BlockDraftState:
    """The drafter with its cache, and each row's current draft length."""

    drafter: BlockDrafter
    length: list[int]


@dataclass(frozen=True)
class BlockDraft(Method):
    """Speculative decoding with a masked model as the drafter.

    Attributes:
        draft: the drafter: the name, directory or hub id of a masked model of the same vocabulary.
        draft_len: most tokens drafted per step.
        steps: forwards of the drafter per block; each writes its share of the masks, the surest first.
        fewest: where fewer drafts than this fill a block, the next block is drafted as well.
        is_adaptive: let the length follow acceptance.
        min_confidence: stop before a place where no token is this likely (0 = never).

    Raises:
        ConfigError: a length or number of steps below 1, a negative `fewest`, or a confidence outside [0, 1].
    """

    draft: str = "stories-block"
    draft_len: int = 16
    steps: int = 1
    fewest: int = 4
    is_adaptive: bool = True
    min_confidence: float = 0.0

    name: ClassVar[str] = "block-draft"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A block-diffusion model drafts the rest of its block in one forward; the target checks."
    paper: ClassVar[Paper] = Paper(
        "DiffuSpec: Unlocking Diffusion Language Models for Speculative Decoding",
        "Li et al.",
        2025,
        "2510.02358",
        269,
        "The path search over the likeliest tokens of all places.",
    )

    def __post_init__(self) -> None:
        if self.draft_len < 1 or self.steps < 1:
            raise ConfigError(f"draft_len is {self.draft_len} and steps {self.steps}.", "Both must be 1 or more.")
        if self.fewest < 0:
            raise ConfigError(f"fewest is {self.fewest}.", "fewest must be 0 or more; 0 never goes on to a next block.")
        if not 0 <= self.min_confidence <= 1:
            raise ConfigError(f"min_confidence is {self.min_confidence}.", "min_confidence must be from 0 to 1.")

    @property
    def needs(self) -> Needs:
        """A causal target, and a masked model of the same vocabulary."""
        return Needs(has_rollback=True, width=self.draft_len, models=("draft",), model_attention={"draft": "canvas"})

    def start(self, context: Context) -> BlockDraftState:
        """Give the drafter an empty cache for the joining rows."""
        first = max(1, self.draft_len // 2) if self.is_adaptive else self.draft_len
        drafter = BlockDrafter.begin(context, "draft", self.draft_len)
        return BlockDraftState(drafter, [first] * len(context.texts))

    def propose(self, view: View, state: BlockDraftState) -> Proposal:
        """Fill the block; rows with no room, or past the drafter's context, go on plainly."""
        reach = state.drafter.reach(view, state.length)
        if max(reach) == 0:
            return nothing(view)
        drafts = state.drafter.draft(view, reach, self.steps, self.fewest, self.min_confidence)
        return chain(view, drafts, self.name)

    def observe(self, outcome: Outcome, view: View, state: BlockDraftState) -> BlockDraftState:
        """Let the length follow acceptance; the drafter's cache holds nothing but text."""
        del view
        if outcome.proposal is None or not self.is_adaptive or outcome.proposal.origin != self.name:
            return state
        steps = zip(state.length, outcome.proposal.length, outcome.accepted, strict=True)
        lengths = [next_length(length, proposed, accepted, self.draft_len) for length, proposed, accepted in steps]
        return replace(state, length=lengths)
