"""A masked model drafts its block at once, and a search finds the path that reads best from left to right.

Paper: Li et al. (2025), arXiv 2510.02358, DiffuSpec (causal-consistency path search, adaptive draft length).
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token; per step one forward of the drafter over the block that holds the end
    of the text, and one over the next block where few places are left; the drafter's weights and cache, and a table of
    about 350 bytes per new tri-gram.
Differences: candidates are weighed by how likely the target's own noise picks them, so drafts are coupled to it at any
    temperature. The n-gram that judges paths is counted in the text itself, and in a corpus where the caller's memory
    holds one; where it has not seen two tokens, the masked model alone decides. The draft length follows acceptance as
    in all methods here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.canvas.block_drafter import masked_drafting
from outpace.canvas.path_drafter import PathDrafter
from outpace.draft.memory import claim
from outpace.draft.trigram import TrigramMemory
from outpace.methods.base import Paper, chain
from outpace.methods.speculative.drafted import AdaptiveDraft
from outpace.setting import setting
from outpace.types import Context, Needs, Proposal, View

__all__ = ["DiffuSpec"]


@dataclass(frozen=True)
class DiffuSpec(AdaptiveDraft):
    """Speculative decoding with a masked model and a path search. `Request.memory` may be a `TrigramMemory`.

    Attributes:
        draft: the drafter: the name, directory or hub id of a masked model of the same vocabulary; "own" = the target
            itself, where it was taught blocks of masks behind causal text.
        fewest: where fewer drafts than this fill a block, the next block is drafted as well.
        beam: paths that are followed at once; 1 = the best token of each place in turn.
        candidates: most tokens looked at per place.
        mass: and no more of them than hold this share of the place's law.
        proxy: weight of the n-gram beside the masked model's.

    Raises:
        ConfigError: a number or share outside its range.
    """

    draft: str = "stories-block"
    draft_len: int = setting(16, least=1)
    fewest: int = setting(4, least=0, note="0 never goes on to a next block")
    beam: int = setting(3, least=1)
    candidates: int = setting(15, least=1)
    mass: float = setting(0.8, above=0, most=1)
    proxy: float = setting(0.5, least=0, most=1)

    name: ClassVar[str] = "diffuspec"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "A masked model drafts a block at once, a path search orders it; the target checks."
    paper: ClassVar[Paper] = Paper(
        "DiffuSpec: Unlocking Diffusion Language Models for Speculative Decoding",
        "Li et al.",
        2025,
        "2510.02358",
        269,
        "A language model of n-grams trained beforehand comes with the caller's memory only.",
    )

    @property
    def needs(self) -> Needs:
        """A causal target, and a masked model of the same vocabulary or blocks of the target's own."""
        return masked_drafting(self.draft, self.draft_len)

    def begin(self, context: Context) -> PathDrafter:
        """Give the drafter an empty cache for the joining rows, and the tri-grams of their texts."""
        drafter = PathDrafter.begin(context, "draft", self.draft_len)
        assert isinstance(drafter, PathDrafter)  # begin makes one of its own class
        drafter.beam, drafter.most, drafter.mass, drafter.proxy = self.beam, self.candidates, self.mass, self.proxy
        return drafter.read(context, claim(context, self.name, TrigramMemory))

    def grow(self, view: View, drafter: PathDrafter, reach: list[int]) -> Proposal:
        """Fill the block with its best path."""
        return chain(view, drafter.draft(view, reach, 1, self.fewest, 0.0), self.name)
