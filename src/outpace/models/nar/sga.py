"""A masked encoder as a generator: it stays as it is, and a few new weights let it write what a source says.

Paper: Wu et al. (2023), arXiv 2305.13140 (SGA): a text is written from nothing but its source (alignment), then read
and written anew (denoising), by one encoder of several languages, which is frozen.
Differences: the paper steers the encoder by prompts in each layer and an attention without weights; here each layer is
followed by a bridge, an attention over the source's states and a small network, both of low rank. Each place also
reads the source's states, spread evenly over the places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cmlm import Cmlm, CmlmConfig
from .network import Pass

__all__ = ["Bridge", "Sga", "SgaConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SgaConfig(CmlmConfig):
    """Sizes of a masked encoder that generates; it has no decoder layers.

    Attributes:
        rank: width of the bridges; a multiple of the heads.
        is_frozen: the encoder, its tables and its head are not trained.
    """

    decoder_layers: int = 0
    rank: int = 32
    is_frozen: bool = True


class Bridge(nn.Module):
    """What stands behind a layer: what it adds to the places' states, at first nothing.

    Args:
        width: of the states.
        rank: of the attention and of the network.
        heads: of the attention.
    """

    def __init__(self, width: int, rank: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.query, self.key_value = nn.Linear(width, rank), nn.Linear(width, 2 * rank)
        self.out, self.down, self.up = nn.Linear(rank, width), nn.Linear(width, rank), nn.Linear(rank, width)
        for last in (self.out, self.up):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, state: Tensor, others: Tensor, is_real: Tensor) -> Tensor:
        """Return the next states [B, L, width], having seen the source's states [B, S, width] that are real [B, S]."""
        parts = self.query(self.norms[0](state)), *self.key_value(others).chunk(2, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        scores = query @ key.mT * query.shape[-1] ** -0.5
        scores = scores.masked_fill(~is_real[:, None, None], torch.finfo(scores.dtype).min)
        found = (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        state = state + self.out(found)
        moved: Tensor = state + self.up(torch.relu(self.down(self.norms[1](state))))
        return moved


class Sga(Cmlm):
    """A masked encoder, which reads sources and texts alike, and bridges from the ones to the others."""

    kind = "sga"
    Config = SgaConfig
    own_layers = True

    def __init__(self, config: SgaConfig) -> None:
        super().__init__(config)
        del self.decoder, self.decoder_norm, self.place_positions
        self.lengths.most = min(config.max_source, config.max_positions)
        self.bridges = nn.ModuleList(
            Bridge(config.width, config.rank, config.heads) for _ in range(config.encoder_layers)
        )
        if config.is_frozen:
            for weight in self.frozen():
                weight.requires_grad_(False)

    def frozen(self) -> list[nn.Parameter]:
        """Return the weights of the masked encoder."""
        parts = self.embed_tokens, self.source_positions, self.encoder, self.encoder_norm
        return [weight for part in parts for weight in part.parameters()]

    def guessed(self, sources: Tensor, is_real: Tensor) -> Tensor:
        """Return the masked encoder's states [B, S, W], which the head reads."""
        return super().encode(sources, is_real)

    def encode(self, sources: Tensor, is_real: Tensor) -> Tensor:
        """Return its states and, added, the tokens' own vectors: layers that guess masks may forget what they read."""
        vectors = F.layer_norm(self.embed_tokens(sources), (self.config.width,))
        return self.guessed(sources, is_real) + vectors

    def decode(self, run: Pass) -> Tensor:
        """Return the last states [B, L, W] of the places: the encoder's, with bridges to the source's states."""
        state = self.drop(run.inputs + self.source_positions.weight[: run.inputs.shape[1]])
        seen = run.is_place[:, None, None, :]
        for layer, bridge in zip(self.encoder, self.bridges, strict=True):
            state = bridge(layer(state, seen), run.states, run.is_real)
        normed: Tensor = self.encoder_norm(state)
        return normed
