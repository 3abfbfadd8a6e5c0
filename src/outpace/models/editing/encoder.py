"""A small Transformer encoder whose rows know nothing of each other's lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Encoder", "Layer", "LayerSizes", "Sizes"]


class LayerSizes(Protocol):
    """Sizes of a layer: of the residual stream, attention heads, width of the feed-forward network."""

    @property
    def width(self) -> int: ...  # noqa: D102

    @property
    def heads(self) -> int: ...  # noqa: D102

    @property
    def ffn(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of an editing model.

    Attributes:
        vocab: tokens.
        width: of the residual stream.
        layers: of the encoder.
        heads: attention heads.
        ffn: width of the feed-forward layers.
        context: most positions of a source.
        factor: frames per source token (CTC): a text may be so many times longer than its source.
        decoder_layers: of the decoder that writes insertions (EdiT5).
    """

    vocab: int
    width: int = 128
    layers: int = 4
    heads: int = 4
    ffn: int = 512
    context: int = 256
    factor: int = 2
    decoder_layers: int = 1


class Encoder(nn.Module):
    """Embeddings with learned positions, then layers with the norm before each branch.

    Args:
        sizes: its sizes.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embed_tokens = nn.Embedding(sizes.vocab, sizes.width)
        self.embed_positions = nn.Embedding(sizes.context, sizes.width)
        for table in (self.embed_tokens, self.embed_positions):
            nn.init.normal_(table.weight, std=sizes.width**-0.5)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, tokens: Tensor, is_real: Tensor) -> Tensor:
        """Return the states [B, S, width] of tokens [B, S]; `is_real` [B, S] is False on padding."""
        state = self.embed_tokens(tokens) + self.embed_positions.weight[: tokens.shape[1]]
        seen = is_real[:, None, None, :]
        for layer in self.layers:
            state = layer(state, seen)
        normed: Tensor = self.norm(state)
        return normed


class Layer(nn.Module):
    """Self-attention and a feed-forward network; where `has_cross`, attention over other states between the two."""

    def __init__(self, sizes: LayerSizes, has_cross: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        width = sizes.width
        self.heads, self.drop = sizes.heads, nn.Dropout(dropout)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, sizes.ffn), nn.Linear(sizes.ffn, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if has_cross else 2))
        if has_cross:
            self.cross_q, self.cross_kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
            self.cross_out = nn.Linear(width, width)

    def forward(
        self,
        state: Tensor,
        seen: Tensor,
        others: Tensor | None = None,
        others_seen: Tensor | None = None,
        only: Tensor | None = None,
        parts: int = 1,
    ) -> Tensor:
        """Return the next states [B, T, width]; the masks are True where a key is seen, [B, 1, 1 or T, keys].

        With `only` [B, K] int64, the next states of those places alone are computed and returned, [B, K, width]. Of
        several parts, T / parts places each, every one sees itself alone: `seen` is [B * parts, 1, size, size].
        """
        query, key, value = self.qkv(self.norms[0](state)).unflatten(1, (parts, -1)).flatten(0, 1).chunk(3, -1)
        if only is not None:  # all in one part
            index = only[:, :, None].expand(-1, -1, state.shape[-1])
            query, state = query.gather(1, index), state.gather(1, index)
        state = state + self.drop(self.out(self._attend(query, key, value, seen).reshape(state.shape)))
        if others is not None:
            key, value = self.cross_kv(others).chunk(2, -1)
            query = self.cross_q(self.norms[2](state))
            state = state + self.drop(self.cross_out(self._cross(query, key, value, seen, others_seen)))
        hidden = F.relu(self.up(self.norms[1](state)))
        moved: Tensor = state + self.drop(self.down(hidden))
        return moved

    def _cross(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor, others_seen: Tensor | None) -> Tensor:
        """Return what cross-attention finds, [B, T, width]; other kinds of it look at `seen` too."""
        del seen
        return self._attend(query, key, value, others_seen)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        if torch.is_grad_enabled():  # backward through the fused product takes three times as long on short rows
            scores = query @ key.mT * query.shape[-1] ** -0.5
            if seen is not None:
                scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
            found: Tensor = scores.softmax(-1).to(value.dtype) @ value
            return found.transpose(1, 2).flatten(2)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2).flatten(2)
