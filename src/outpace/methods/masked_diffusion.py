"""Write a text block by block, each from masks, the surest positions first.

Paper: Nie et al. (2025), arXiv 2502.09992 (LLaDA), semi-autoregressive sampling with low-confidence re-masking; the
    threshold is Wu et al. (2025), arXiv 2505.22618 (Fast-dLLM).
Guarantee: approximate. The reference is the same model and block length with one token per step (threshold above 1).
Cost: 1 forward over prompt, text and block per step, and at most one step per token; no cache, since under full
    attention every entry changes with the canvas.
Differences: tokens are drawn with noise keyed by position and visit; end tokens end the text at the end of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from outpace.accept.canvas import write_surest
from outpace.errors import ConfigError
from outpace.methods.base import Method, Paper, as_device
from outpace.types import Context, Decision, Guarantee, Needs, Outcome, Proposal, Scores, View

__all__ = ["CanvasState", "MaskedDiffusion"]


@dataclass
class CanvasState:
    """The block being written, [B, block] ids with masks, and how many tokens each row has written in all."""

    canvas: Tensor
    written: list[int]
    mask_id: int


@dataclass(frozen=True)
class MaskedDiffusion(Method):
    """Block-wise masked diffusion.

    Attributes:
        block: positions per block.
        threshold: positions at least this sure are written together; above 1 = only `per_step`.
        per_step: positions written per step at least.

    Raises:
        ConfigError: a block or per_step below 1, or a threshold that is not positive.
    """

    block: int = 16
    threshold: float = 0.9
    per_step: int = 1

    name: ClassVar[str] = "masked-diffusion"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Unmasks a block of positions, the surest first; needs a masked model."
    paper: ClassVar[Paper] = Paper(
        "Large Language Diffusion Models",
        "Nie et al.",
        2025,
        "2502.09992",
        0,
        "Classifier-free guidance.",
    )

    def __post_init__(self) -> None:
        if self.block < 1 or self.per_step < 1:
            raise ConfigError(f"block is {self.block} and per_step {self.per_step}.", "Both must be 1 or more.")
        if not self.threshold > 0:
            raise ConfigError(f"threshold is {self.threshold}.", "threshold must be above 0; above 1 turns it off.")

    @property
    def needs(self) -> Needs:
        """A masked model with full attention."""
        return Needs(attention="full", has_mask=True, width=self.block)

    @property
    def guarantee(self) -> Guarantee:
        """Positions written together ignore each other."""
        return Guarantee.APPROXIMATE

    def start(self, context: Context) -> CanvasState:
        """Return an empty block per row."""
        mask_id = context.target.capabilities.mask_id
        if mask_id is None:
            raise ConfigError("The model has no mask token.", "Use a masked model, such as stories-mask.")
        if context.sampler.settings.is_stateful:
            raise ConfigError(
                "masked-diffusion writes out of order, so no penalty, bad word, min_tokens or constraint can hold.",
                "Leave them out, or use a causal model.",
            )
        rows = len(context.texts)
        return CanvasState(torch.full((rows, self.block), mask_id), [0] * rows, mask_id)

    def propose(self, view: View, state: CanvasState) -> Proposal:
        """Propose the canvas as it stands; the last block is as long as the room left."""
        length = [min(self.block, room) for room in view.room]
        return Proposal(as_device(state.canvas[:, : max(length)], view), length, origin=self.name)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: CanvasState) -> Decision:
        """Draw a token at every masked position, write the surest, and end the block when no mask is left."""
        canvas, width = proposal.tokens, proposal.tokens.shape[1]
        device = canvas.device
        lengths = torch.tensor(proposal.length, device=device).unsqueeze(1)
        is_real = torch.arange(width, device=device).unsqueeze(0) < lengths
        is_masked = (canvas == state.mask_id) & is_real
        logits = scores.logits[:, 1:].clone()
        logits[..., state.mask_id] = float("-inf")
        drawn, confidence = self._draw(logits, view, state)
        writes = write_surest(confidence, is_masked, self.per_step, self.threshold)
        filled = torch.where(writes, drawn, canvas)
        is_whole = ~((filled == state.mask_id) & is_real).any(-1)
        is_broken = (writes & (drawn < 0)).any(-1)
        # A row with NaN logits ends at once: -1 is the loop's sign for it.
        tokens = torch.where(is_broken.unsqueeze(1), -1, filled)
        num = torch.where(is_broken, 1, torch.where(is_whole, lengths.squeeze(1), 0))
        path = torch.arange(width, device=device).expand_as(tokens)
        return Decision(tokens, num, path, carry=(filled, writes.sum(-1)))

    def _draw(self, logits: Tensor, view: View, state: CanvasState) -> tuple[Tensor, Tensor]:
        """Return drawn tokens and the model's own probability of each, both [B, W]."""
        width = logits.shape[1]
        place = torch.tensor(view.lengths).unsqueeze(1) + torch.arange(width)
        drawn = []
        for row, visit in enumerate(state.written):  # rows have their own clocks, and the visit is part of the key
            sampler = view.sampler.rows([row])
            processed = sampler.process(logits[row : row + 1], None)
            drawn.append(sampler.pick(processed, place[row : row + 1].to(logits.device), visit=visit))
        tokens = torch.cat(drawn)
        probs = logits.softmax(-1).gather(-1, tokens.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return tokens, probs.nan_to_num(0.0)

    def observe(self, outcome: Outcome, view: View, state: CanvasState) -> CanvasState:
        """Keep what was written; a finished block gives way to a fresh one."""
        if outcome.decision is None:
            return state
        filled, count = outcome.decision.carry
        is_done = torch.tensor([len(tokens) > 0 for tokens in outcome.emitted]).unsqueeze(1)
        canvas = torch.full_like(state.canvas, state.mask_id)
        canvas[:, : filled.shape[1]] = filled
        canvas = torch.where(is_done, state.mask_id, canvas)
        written = [before + int(now) for before, now in zip(state.written, count.tolist(), strict=True)]
        return replace(state, canvas=canvas, written=written)
