"""What methods share that let open places carry what the last step believed of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from outpace.errors import CapabilityError
from outpace.methods.diffusion.base import CanvasBatch, CanvasMethod
from outpace.types import Context, Proposal, View

__all__ = ["SoftMasks"]


@dataclass(frozen=True)
class SoftMasks(CanvasMethod):
    """Masks mixed with believed tokens; the rule's memo is a `Belief`, and a subclass says what is mixed."""

    dial: ClassVar[str]
    """The setting that says how much is mixed; at 0 nothing is."""

    @property
    def is_mixing(self) -> bool:
        """Whether anything is mixed at all."""
        return bool(getattr(self, self.dial))

    def mixed(self, laws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is mixed into masks whose laws are [K, V]: [K] shares, [K, N] token ids, [K, N] weights."""
        raise NotImplementedError

    def start(self, context: Context) -> CanvasBatch:
        """Return the rows' canvases.

        Raises:
            CapabilityError: the model does not hand out its embeddings.
        """
        if self.is_mixing and not hasattr(context.target, "embed"):
            raise CapabilityError(
                f"{self.name} feeds mixed embeddings to the model, and this one has no `embed`.",
                f"Use {self.dial}=0, or a model that takes soft inputs.",
            )
        return super().start(context)

    def dress(self, proposal: Proposal, view: View, state: CanvasBatch) -> Proposal:
        """Mix what is believed of the rows' open places into their masks."""
        del view
        # The beliefs of a block end with it: its last step wrote all that they speak of.
        told = [
            row.memo.within(copies[0].window.places) if self.is_mixing and row.step else None
            for row, copies in zip(state.canvases, proposal.carry, strict=True)
        ]
        if not any(one is not None and len(one[0]) for one in told):
            return proposal
        embed, mask = state.target.embed, proposal.tokens.new_tensor([state.parts.canvas.mask_id])
        inputs = embed(proposal.tokens).clone()
        for index, one in enumerate(told):
            if one is not None and len(one[0]):
                share, ids, weights = self.mixed(one[1])
                tokens = (weights.unsqueeze(-1) * embed(ids).double()).sum(1)
                mixed = (1 - share).unsqueeze(-1) * embed(mask).double() + share.unsqueeze(-1) * tokens
                inputs[index, torch.from_numpy(one[0])] = mixed.to(inputs.dtype)
        return replace(proposal, inputs=inputs)
