"""Heads that look at each other, on states that were first adapted from writing on to guessing ahead.

Paper: Li et al. (2024), arXiv 2406.13170, Amphista. Two causal layers, the staged adaptation, read the target's states
of the whole text, the second one together with the embedding of the token after each (section 3.2). Then each head
makes a vector of its own out of the adapted state, and a layer of attention in both directions lets all heads see each
other, the auto-embedding block (section 3.1). The laws do not depend on what is drafted: one pass gives them all.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from outpace.heads.draft import HeadDrafter
from outpace.heads.layer import DecoderLayer, PrefixDrafter, Sight, causal_sight
from outpace.heads.medusa import Block
from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, Frozen, HeadConfig, shifted
from outpace.heads.slots import Options, SlotNet, at_depth
from outpace.types import Context

__all__ = ["AmphistaNet"]


class AmphistaNet(SlotNet):
    """Settings: depth (heads), inner (width of the mlp of each layer; 0 = 2.75 times the target's)."""

    kind: ClassVar[str] = "amphista"
    options: ClassVar[Options] = {"inner": (0, 0)}

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        size, inner = config.hidden_size, self.option("inner")
        self.adaptation = nn.ModuleList([DecoderLayer(size, inner), DecoderLayer(size, inner)])
        self.fuse = nn.Linear(2 * size, size, bias=False)
        self.heads = nn.ModuleList([Block(size) for _ in range(config.depth)])
        self.places = nn.Parameter(torch.zeros(config.depth, size))
        self.interaction = DecoderLayer(size, inner, is_kept=False)

    def begin(self, frozen: Frozen) -> None:
        """Let all layers begin as ones that change nothing, so that the heads begin where Medusa's do."""
        del frozen
        for layer in (*self.adaptation, self.interaction):
            layer.quieten()
        size = self.config.hidden_size
        with torch.no_grad():
            self.fuse.weight.copy_(torch.eye(size, 2 * size))

    def read(self, states: Tensor, embedded: Tensor, sight: Sight, buffers: Any = ()) -> Tensor:
        """Return the adapted states, [B, T, hidden]."""
        first, second = self.adaptation
        x = first(states, sight, buffers[:2])
        found: Tensor = second(self.fuse(torch.cat([x, embedded], -1)), sight, buffers[2:])
        return found

    def hidden(self, states: Tensor) -> Tensor:
        """Return what the target's output matrix reads, [..., D, hidden], of adapted states [..., hidden]."""
        x = torch.stack([head(states) for head in self.heads], -2) + self.places
        flat = x.flatten(0, -3)
        place = torch.arange(self.config.depth, device=x.device).expand(len(flat), -1)
        everyone = torch.ones(1, 1, 1, dtype=torch.bool, device=x.device).expand(len(flat), *2 * [self.config.depth])
        return self.interaction(flat, Sight(place, everyone)).view(x.shape)  # type: ignore[no-any-return]

    def laws(self, batch: Batch) -> list[Tensor]:
        """Return per depth logits [B, T, K]."""
        embedded = batch.frozen.embed(shifted(batch.tokens, 1)[0])
        x = self.hidden(self.read(batch.states, embedded, causal_sight(batch.tokens)))
        return [batch.frozen.logits(part) for part in x.unbind(-2)]

    def new_drafter(self, model: HeadModel, context: Context) -> HeadDrafter:
        """Return a drafter from laws of places ahead, which reads the whole text."""
        return PrefixDrafter.begin_with(model, context)

    def slots(self, model: HeadModel, states: Tensor, token: Tensor) -> Tensor:
        """Return [B, D, hidden]."""
        del model, token
        return self.hidden(states)

    def after(self, model: HeadModel, slots: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return logits [B, N, K]; heads know each other, and not the path."""
        del path
        return model.logits(at_depth(slots, depth))
