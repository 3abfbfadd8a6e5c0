"""Two transformers of equal size: an encoder and a decoder, or one decoder that reads the source before the target.

Paper: Elfeki, Liu, Voegele (2025), "Return of the Encoder: Maximizing Parameter Efficiency for SLMs",
arXiv:2501.16273: at equal parameters an encoder-decoder, two thirds of them in the encoder, answers long inputs sooner
and faster than a decoder, and learns from one by distillation. A decoder layer with its attention to the source weighs
16 width^2 where others weigh 12, so 8 and 3 layers equal 12 (`equal_configs`).
Differences: both read learned positions, source and target each from 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.models.nets.base import PairConfig, PairNet, Window
from outpace.models.nets.layers import CrossLayer, Layer
from outpace.papers import Paper

__all__ = ["PAPERS", "DecoderOnly", "DecoderOnlyConfig", "EncoderDecoder", "EncoderDecoderConfig", "equal_configs"]

PAPERS = (
    Paper(
        "Return of the Encoder: Maximizing Parameter Efficiency for SLMs",
        "Elfeki, Liu, Voegele",
        2025,
        "2501.16273",
        249,
        "Its models of 330 million parameters and the encoder of images.",
        "outpace bench --stacks 128,512,1024",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig(PairConfig):
    """Sizes that both have.

    Attributes:
        width: of the residual stream.
        heads: of the attention.
        ffn: width of the feed-forward layers.
        dropout: of embeddings and residual branches, in training.
    """

    width: int = 128
    heads: int = 4
    ffn: int = 512
    dropout: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderOnlyConfig(StackConfig):
    """Sizes of a decoder that reads the source, then writes.

    Attributes:
        layers: of the stack.
    """

    layers: int = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderDecoderConfig(StackConfig):
    """Sizes of an encoder and a decoder.

    Attributes:
        encoder_layers, decoder_layers: of each.
    """

    encoder_layers: int = 2
    decoder_layers: int = 3


def equal_configs(layers: int, **sizes: Any) -> tuple[DecoderOnlyConfig, EncoderDecoderConfig]:
    """Return a decoder of so many layers, and an encoder-decoder of the same number of parameters.

    Args:
        layers: of the decoder. Where 12 divides it, two thirds of the other's layers' weights lie in the encoder.
        **sizes: of both; the feed-forward layers are four times as wide as the stream.
    """
    parts = max(1, round(layers / 12))
    encoder, deep = layers - 4 * parts, 3 * parts  # 3 layers of 16 weigh as much as 4 of 12
    if encoder < 1:
        raise ValueError("an encoder-decoder needs at least five layers' worth of parameters")
    given = {**sizes, "ffn": 4 * sizes["width"]}
    return (
        DecoderOnlyConfig(layers=layers, **given),
        EncoderDecoderConfig(encoder_layers=encoder, decoder_layers=deep, **given),
    )


class _Stacked(PairNet):
    """What both do alike: embeddings with places, and the head."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.embed_source = nn.Embedding(config.max_source, width)
        self.embed_target = nn.Embedding(config.max_positions, width)
        self.norm = nn.LayerNorm(width)
        for table in (self.embedding, self.embed_source, self.embed_target):
            nn.init.normal_(table.weight, std=width**-0.5)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [B, T, width], without places."""
        found: Tensor = self.embedding(tokens) * math.sqrt(self.config.width)
        return found

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits by the embedding matrix."""
        return F.linear(hidden, self.embedding.weight)

    def _opened(self, tokens: Tensor, is_real: Tensor) -> Tensor:
        """Return what enters the first layer at source tokens [B, S], whose padding `is_real` is False."""
        del is_real
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return F.dropout(self.embed(tokens) + self.embed_source(places), self.config.dropout, self.training)

    def _begun(self, inputs: Tensor, places: Tensor) -> Tensor:
        """Return what enters the first layer at target embeddings [B, T, width]."""
        return F.dropout(inputs + self.embed_target(places), self.config.dropout, self.training)

    def _layer(self, kind: type[Layer]) -> Layer:
        config = self.config
        return kind(config.width, config.heads, config.ffn, config.dropout)


class DecoderOnly(_Stacked):
    """One stack: the source's tokens see those before them, the target's see the source and those before them."""

    Config = DecoderOnlyConfig

    def __init__(self, config: DecoderOnlyConfig) -> None:
        super().__init__(config)
        self.num_layers = config.layers
        self.layers: Any = nn.ModuleList(self._layer(Layer) for _ in range(config.layers))

    def encode(self, sources: Tensor, is_real: Tensor) -> list[Tensor]:
        """Return the mask [B, S], and each layer's keys and values of the source [B, S, width]."""
        states, kept = self._opened(sources, is_real), [is_real]
        sight = _causal(sources.shape[1], is_real) & is_real.unsqueeze(1)
        for layer in self.layers:
            queries, keys, values = layer.projected(states)
            kept += [keys, values]
            states = layer.fed(layer.attended(states, queries, keys, values, sight))
        return kept

    def entry_shapes(self, source: int) -> list[tuple[int, ...]]:
        """A token's entry is its keys and values in each layer."""
        del source
        return [(self.config.width,)] * (2 * self.config.layers)

    def read(self, window: Window) -> tuple[Tensor, list[Tensor]]:
        """Read new tokens on the source and on the target tokens before each."""
        states, entries = self._begun(window.inputs, window.position.clamp(min=0)), list[Tensor]()
        is_real = window.memory[0].unsqueeze(1).expand(-1, states.shape[1], -1)
        sight = torch.cat([is_real, window.whole_sight()], -1)
        for at, layer in enumerate(self.layers):
            queries, *own = layer.projected(states)
            keys, values = (
                torch.cat([window.memory[1 + 2 * at + n], window.past[2 * at + n][:, : window.slots], own[n]], 1)
                for n in (0, 1)
            )
            states = layer.fed(layer.attended(states, queries, keys, values, sight))
            entries += own
        return self.norm(states), entries

    def states(self, sources: Tensor, is_real: Tensor, inputs: Tensor) -> Tensor:
        """Return what the head reads of whole targets, [B, T, width], both sides in one sequence."""
        size = inputs.shape[1]
        begun = self._begun(self.embed(inputs), torch.arange(size, device=inputs.device))
        states = torch.cat([self._opened(sources, is_real), begun], 1)
        seen = F.pad(is_real, (0, size), value=True)
        sight = _causal(states.shape[1], is_real) & seen.unsqueeze(1)
        for layer in self.layers:
            states = layer(states, sight)
        normed: Tensor = self.norm(states[:, -size:])
        return normed


class EncoderDecoder(_Stacked):
    """Two stacks: the source's tokens see each other, the target's see the encoded source and those before them."""

    Config = EncoderDecoderConfig

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__(config)
        self.num_layers = config.decoder_layers
        self.encoder: Any = nn.ModuleList(self._layer(Layer) for _ in range(config.encoder_layers))
        self.decoder: Any = nn.ModuleList(self._layer(CrossLayer) for _ in range(config.decoder_layers))
        self.source_norm = nn.LayerNorm(config.width)

    def encode(self, sources: Tensor, is_real: Tensor) -> list[Tensor]:
        """Return the mask [B, S], and each decoder layer's keys and values of the source [B, S, width]."""
        states = self._opened(sources, is_real)
        for layer in self.encoder:
            states = layer(states, is_real.unsqueeze(1))
        states = self.source_norm(states)
        return [is_real, *(half for layer in self.decoder for half in layer.kv(states).chunk(2, -1))]

    def entry_shapes(self, source: int) -> list[tuple[int, ...]]:
        """A token's entry is its keys and values in each decoder layer."""
        del source
        return [(self.config.width,)] * (2 * self.config.decoder_layers)

    def read(self, window: Window) -> tuple[Tensor, list[Tensor]]:
        """Read new tokens on the target tokens before each, and on the encoded source."""
        states, entries = self._begun(window.inputs, window.position.clamp(min=0)), list[Tensor]()
        is_real, *source = window.memory
        sight = window.whole_sight()
        for at, layer in enumerate(self.decoder):
            queries, *own = layer.projected(states)
            keys, values = (torch.cat([window.past[2 * at + n][:, : window.slots], own[n]], 1) for n in (0, 1))
            states = layer.attended(states, queries, keys, values, sight)
            states = layer.fed(layer.crossed(states, source[2 * at], source[2 * at + 1], is_real))
            entries += own
        return self.norm(states), entries

    def states(self, sources: Tensor, is_real: Tensor, inputs: Tensor) -> Tensor:
        """Return what the head reads of whole targets, [B, T, width]."""
        _, *source = self.encode(sources, is_real)
        size = inputs.shape[1]
        states = self._begun(self.embed(inputs), torch.arange(size, device=inputs.device))
        sight = _causal(size, is_real).expand(len(inputs), -1, -1)
        for at, layer in enumerate(self.decoder):
            states = layer.attended(states, *layer.projected(states), sight)
            states = layer.fed(layer.crossed(states, source[2 * at], source[2 * at + 1], is_real))
        normed: Tensor = self.norm(states)
        return normed


def _causal(size: int, like: Tensor) -> Tensor:
    """Return [1, size, size] bool: each place sees those before it and itself."""
    return torch.ones(size, size, dtype=torch.bool, device=like.device).tril().unsqueeze(0)
