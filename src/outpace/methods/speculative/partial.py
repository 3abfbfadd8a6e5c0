"""What methods have in common whose target drafts for itself with the same layers left out in every step."""

from __future__ import annotations

from dataclasses import dataclass

from outpace.draft.layers import SelfDrafter
from outpace.methods.speculative.drafted import AdaptiveDraft
from outpace.setting import setting
from outpace.types import Context, Needs, Proposal, View

__all__ = ["PartialDraft"]


@dataclass(frozen=True)
class PartialDraft(AdaptiveDraft):
    """Drafts with some of the target's own layers; subclasses say which are left out.

    Attributes:
        min_confidence: stop drafting where no token is this likely (0 = never).
    """

    min_confidence: float = setting(0.0, least=0, most=1)

    @property
    def needs(self) -> Needs:
        """A causal target whose layers can be skipped."""
        return Needs(has_rollback=True, has_skip=True, width=self.draft_len)

    def left_out(self, layers: int) -> tuple[int, ...]:
        """Return the layers that do not draft, of a model with so many."""
        raise NotImplementedError

    def begin(self, context: Context) -> SelfDrafter:
        """Choose the layers."""
        return SelfDrafter.begin(context, self.left_out(context.target.capabilities.num_layers))

    def grow(self, view: View, drafter: SelfDrafter, reach: list[int]) -> Proposal:
        """Draft on a fork of the target's cache."""
        return drafter.chain(view, reach, self.name, self.min_confidence)
