"""Pervasive attention: one two-dimensional convolutional network over the grid of source and target tokens.

Paper: Elbayad, Besacier, Verbeek (2018), arXiv:1808.03867, section 3: a grid of joined embeddings, densely connected
blocks with convolutions masked towards the target's future, maximum over the source, softmax.
Differences: layer norms over the channels stand where the paper has batch norms, whose statistics would hang on the
padding of a batch; of the paper's ways to pool over the source the maximum alone is built.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.models.nets.base import PairConfig, PairNet, Window, gathered
from outpace.papers import Paper

__all__ = ["PAPERS", "Pervasive", "PervasiveConfig"]

PAPERS = (
    Paper(
        "Pervasive Attention: 2D Convolutional Neural Networks for Sequence-to-Sequence Prediction",
        "Elbayad, Besacier, Verbeek",
        2018,
        "1808.03867",
        86,
        "Average and self-attention pooling, gated and residual blocks, and the depth of its published models.",
        "outpace train pairs-pervasive",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PervasiveConfig(PairConfig):
    """Sizes of a network with pervasive attention.

    Attributes:
        width: of the embeddings of each side.
        layers: of the dense block.
        growth: channels that each layer adds.
        squeeze: channels between a layer's two convolutions, as a multiple of `growth`.
        kernel: source tokens that a convolution looks at, odd; half of it, rounded up, are its target tokens.
        dropout: of embeddings and of what each layer adds, in training.
    """

    width: int = 64
    layers: int = 8
    growth: int = 24
    squeeze: int = 2
    kernel: int = 3
    dropout: float = 0.1

    @property
    def rows(self) -> int:
        """Target tokens that a convolution looks at, its own included."""
        return (self.kernel + 1) // 2


class _Layer(nn.Module):
    """A dense layer: norm, a mix of channels, norm, a masked convolution; it adds `growth` channels to its input."""

    def __init__(self, channels: int, config: PervasiveConfig) -> None:
        super().__init__()
        inner = config.squeeze * config.growth
        self.norm, self.squeeze = nn.LayerNorm(channels), nn.Linear(channels, inner)
        self.inner_norm = nn.LayerNorm(inner)
        self.conv = nn.Conv2d(inner, config.growth, (config.rows, config.kernel), padding=(0, config.kernel // 2))

    def squeezed(self, grid: Tensor, is_real: Tensor) -> Tensor:
        """Return what the convolution reads, [B, T, S, inner] of a grid [B, T, S, channels]; zero at padding."""
        inner = F.relu(self.inner_norm(self.squeeze(F.relu(self.norm(grid)))))
        return inner * is_real[:, None, :, None].to(inner.dtype)

    def convolved(self, stacked: Tensor) -> Tensor:
        """Return [B, T', S, growth] of squeezed rows [B, T' + rows - 1, S, inner]."""
        found: Tensor = self.conv(stacked.permute(0, 3, 1, 2))
        return found.permute(0, 2, 3, 1)


class Pervasive(PairNet):
    """A dense block of masked two-dimensional convolutions."""

    Config = PervasiveConfig

    def __init__(self, config: PervasiveConfig) -> None:
        super().__init__()
        self.config, self.num_layers = config, config.layers
        self.source_embedding = nn.Embedding(config.vocab_size, config.width)
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        channels = [2 * config.width + n * config.growth for n in range(config.layers + 1)]
        self.layers = nn.ModuleList(_Layer(count, config) for count in channels[:-1])
        self.norm, self.merge = nn.LayerNorm(channels[-1]), nn.Linear(channels[-1], config.width)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        for table in (self.source_embedding, self.embedding):
            nn.init.normal_(table.weight, std=config.width**-0.5)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [B, T, width]."""
        return F.dropout(self.embedding(tokens), self.config.dropout, self.training)

    def encode(self, sources: Tensor, is_real: Tensor) -> list[Tensor]:
        """Return the mask [B, S] and the embeddings [B, S, width]: the grid does the rest."""
        states = F.dropout(self.source_embedding(sources), self.config.dropout, self.training)
        return [is_real, states * is_real.unsqueeze(-1).to(states.dtype)]

    def entry_shapes(self, source: int) -> list[tuple[int, ...]]:
        """A token's entry is its row of the grid as each layer's convolution reads it."""
        return [(source, self.config.squeeze * self.config.growth) for _ in self.layers]

    def read(self, window: Window) -> tuple[Tensor, list[Tensor]]:
        """Read new tokens, all of them layer by layer, on the rows of the tokens before each."""
        is_real, source = window.memory
        size, entries = window.inputs.shape[1], list[Tensor]()
        index = [window.ancestors(distance) for distance in reversed(range(1, self.config.rows))]
        grid = _grid(window.inputs, source)
        for layer, past in zip(self.layers, window.past, strict=True):
            assert isinstance(layer, _Layer)
            own = layer.squeezed(grid, is_real)
            above = [gathered(past[:, : window.slots], own, where) for where in index]
            stacked = torch.stack([*above, own], 2).flatten(0, 1)  # [B * T, rows, S, inner]
            grid = torch.cat([grid, layer.convolved(stacked).view(len(own), size, own.shape[2], -1)], -1)
            entries.append(own)
        return self._pooled(grid, is_real), entries

    def states(self, sources: Tensor, is_real: Tensor, inputs: Tensor) -> Tensor:
        """Return what the head reads of whole targets, [B, T, width]."""
        _, source = self.encode(sources, is_real)
        grid = _grid(self.embed(inputs), source)
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            above = F.pad(layer.squeezed(grid, is_real), (0, 0, 0, 0, self.config.rows - 1, 0))
            grid = torch.cat([grid, F.dropout(layer.convolved(above), self.config.dropout, self.training)], -1)
        return self._pooled(grid, is_real)

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits by the embedding matrix."""
        return F.linear(hidden, self.embedding.weight, self.bias)

    def _pooled(self, grid: Tensor, is_real: Tensor) -> Tensor:
        """Return the maximum over the source of [B, T, S, channels], brought to the width: [B, T, width]."""
        shown = F.relu(self.norm(grid)).masked_fill(~is_real[:, None, :, None], 0)  # nothing is below 0
        merged: Tensor = self.merge(shown.amax(2))
        return merged


def _grid(target: Tensor, source: Tensor) -> Tensor:
    """Return [B, T, S, 2 width]: each target token beside each source token."""
    shape = (-1, target.shape[1], source.shape[1], -1)
    return torch.cat([target.unsqueeze(2).expand(shape), source.unsqueeze(1).expand(shape)], -1)
