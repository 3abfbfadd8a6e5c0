"""Transformer layers with norms before, for networks of several stacks: attention, attention to a source, GELUs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CrossLayer", "Layer", "attend"]


class Layer(nn.Module):
    """Attention, then a feed-forward layer, each on the norm of the residual stream.

    Args:
        width: of the stream.
        heads: of the attention.
        ffn: width of the feed-forward layer.
        dropout: of both branches, in training.
    """

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, ffn), nn.Linear(ffn, width)

    def projected(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [B, N, width] of what enters the layer."""
        queries, keys, values = self.qkv(self.norm(states)).chunk(3, -1)
        return queries, keys, values

    def attended(self, states: Tensor, queries: Tensor, keys: Tensor, values: Tensor, sight: Tensor) -> Tensor:
        """Return the stream behind the attention."""
        return states + self._dropped(self.out(attend(queries, keys, values, sight, self.heads)))

    def fed(self, states: Tensor) -> Tensor:
        """Return the stream behind the feed-forward layer."""
        return states + self._dropped(self.down(F.gelu(self.up(self.ffn_norm(states)))))

    def forward(self, states: Tensor, sight: Tensor) -> Tensor:
        """Return what leaves the layer where all that is seen enters it too."""
        return self.fed(self.attended(states, *self.projected(states), sight))

    def _dropped(self, branch: Tensor) -> Tensor:
        return F.dropout(branch, self.dropout, self.training)


class CrossLayer(Layer):
    """A layer that attends to a source between its own attention and the feed-forward layer."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__(width, heads, ffn, dropout)
        self.cross_norm = nn.LayerNorm(width)
        self.query, self.kv, self.cross_out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )

    def crossed(self, states: Tensor, keys: Tensor, values: Tensor, is_real: Tensor) -> Tensor:
        """Return the stream behind the attention to source keys and values [B, S, width], real where `is_real`."""
        queries = self.query(self.cross_norm(states))
        return states + self._dropped(self.cross_out(attend(queries, keys, values, is_real.unsqueeze(1), self.heads)))


def attend(queries: Tensor, keys: Tensor, values: Tensor, sight: Tensor, heads: int) -> Tensor:
    """Return multi-head attention [B, T, D] of queries [B, T, D] over keys and values [B, S, D].

    Args:
        queries, keys, values: before they are split into heads.
        sight: [B, T or 1, S] bool, which key each query sees; one that sees none gets the mean, which nobody reads.
        heads: how many.
    """
    split = [each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (queries, keys, values)]
    weights = split[0] @ split[1].transpose(-1, -2) / math.sqrt(split[0].shape[-1])
    weights = weights.masked_fill(~sight.unsqueeze(1), torch.finfo(weights.dtype).min).softmax(-1)
    found: Tensor = (weights @ split[2]).transpose(1, 2).flatten(2)
    return found
