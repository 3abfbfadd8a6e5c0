"""A decoder-only translator with registers: target-language tokens between source and target, which alone are read.

Paper: Qu et al. (2025), "Registering Source Tokens to Target Language Spaces in Multilingual Neural Machine
Translation", arXiv:2501.02979. The input is [source | registers | target] in one stack of layers. Source tokens see
the source; registers, copies of the target language's tag, see source and registers; target tokens see registers and
the target so far. So the engine keeps the registers' keys and values, and forgets the source once it is read.
Differences: the tag opens the source, and the target begins with the start token rather than with the tag once more;
positions are learned, a table each for source, registers and target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.errors import ConfigError
from outpace.models.nets.base import PairConfig, PairNet, Window
from outpace.models.nets.layers import Layer
from outpace.papers import Paper

__all__ = ["PAPERS", "Registers", "RegistersConfig", "stream_sight"]

PAPERS = (
    Paper(
        "Registering Source Tokens to Target Language Spaces in Multilingual Neural Machine Translation",
        "Qu et al.",
        2025,
        "2501.02979",
        136,
        "The published models and their 24 languages: ours has the two directions that Multi30k is measured in.",
        "outpace train pairs-registers",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistersConfig(PairConfig):
    """Sizes of a translator with registers.

    Attributes:
        width: of the residual stream.
        layers: of the one stack.
        heads: of the attention.
        ffn: width of the feed-forward layers.
        factor: source tokens to a register, rounded up.
        tags: tokens that name a target language, one of which opens each source; empty = any token may.
        dropout: of embeddings and residual branches, in training.
    """

    width: int = 192
    layers: int = 4
    heads: int = 4
    ffn: int = 576
    factor: int = 1
    tags: tuple[int, ...] = ()
    dropout: float = 0.1

    def num_registers(self, source: int) -> int:
        """Return how many registers stand behind so many source tokens."""
        return -(-source // self.factor)


class Registers(PairNet):
    """One stack of layers over source, registers and target."""

    Config = RegistersConfig

    def __init__(self, config: RegistersConfig) -> None:
        super().__init__()
        self.config, self.num_layers = config, config.layers
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        sizes = {"source": config.max_source, "register": config.max_source, "target": config.max_positions}
        self.embed_places = nn.ModuleDict({name: nn.Embedding(size, config.width) for name, size in sizes.items()})
        sizes_of = (config.width, config.heads, config.ffn, config.dropout)
        self.layers: Any = nn.ModuleList(Layer(*sizes_of) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        for table in (self.embedding, *self.embed_places.values()):
            nn.init.normal_(table.weight, std=config.width**-0.5)  # type: ignore[arg-type]

    def check(self, source: Sequence[int]) -> None:
        """Refuse a source that no tag opens.

        Raises:
            ConfigError: its first token names no target language.
        """
        if self.config.tags and source[0] not in self.config.tags:
            raise ConfigError(
                "The source does not say into which language.", "Begin it with a tag that the model knows: <|de|>..."
            )

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings [B, T, width], without places."""
        found: Tensor = self.embedding(tokens) * math.sqrt(self.config.width)
        return found

    def encode(self, sources: Tensor, is_real: Tensor) -> list[Tensor]:
        """Return which registers are real [B, R], and each layer's keys and values of the registers [B, R, width]."""
        states, is_real, count = self._opened(sources, is_real)
        sight, kept = stream_sight(is_real, sources.shape[1], count, 0), [is_real[:, -count:]]
        for layer in self.layers:
            queries, keys, values = layer.projected(states)
            kept += [keys[:, -count:], values[:, -count:]]
            states = layer.fed(layer.attended(states, queries, keys, values, sight))
        return kept

    def entry_shapes(self, source: int) -> list[tuple[int, ...]]:
        """A token's entry is its keys and values in each layer."""
        del source
        return [(self.config.width,)] * (2 * self.config.layers)

    def read(self, window: Window) -> tuple[Tensor, list[Tensor]]:
        """Read new tokens on the registers and on the target tokens before each."""
        is_register, entries = window.memory[0], list[Tensor]()
        states = self._placed(window.inputs, "target", window.position.clamp(min=0))
        seen = is_register.unsqueeze(1).expand(-1, states.shape[1], -1)
        sight = torch.cat([seen, window.whole_sight()], -1)
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
        """Return what the head reads of whole targets, [B, T, width], with all three parts in one sequence."""
        states, is_real, count = self._opened(sources, is_real)
        size = inputs.shape[1]
        target = self._placed(self.embed(inputs), "target", torch.arange(size, device=inputs.device))
        states = torch.cat([states, target], 1)
        sight = stream_sight(is_real, sources.shape[1], count, size)
        for layer in self.layers:
            states = layer(states, sight)
        normed: Tensor = self.norm(states[:, -size:])
        return normed

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits by the embedding matrix."""
        return F.linear(hidden, self.embedding.weight)

    def _opened(self, sources: Tensor, is_real: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return the embedded source with its registers [B, S + R, width], which are real, and R."""
        size, device = sources.shape[1], sources.device
        held = is_real.sum(1, keepdim=True)
        count = self.config.num_registers(size)
        is_register = torch.arange(count, device=device) < -(-held // self.config.factor)
        source = self._placed(self.embed(sources), "source", torch.arange(size, device=device))
        tags = self.embed(sources[:, :1]).expand(-1, count, -1)
        registers = self._placed(tags, "register", torch.arange(count, device=device))
        return torch.cat([source, registers], 1), torch.cat([is_real, is_register], 1), count

    def _placed(self, states: Tensor, table: str, places: Tensor) -> Tensor:
        return F.dropout(states + self.embed_places[table](places), self.config.dropout, self.training)


def stream_sight(is_real: Tensor, source: int, registers: int, target: int) -> Tensor:
    """Return who sees whom in [source | registers | target], [B, N, N] bool.

    Args:
        is_real: [B, source + registers] bool, False at padding, which nobody sees.
        source, registers, target: tokens of each part.
    """
    part = torch.cat([torch.full((n,), i) for i, n in enumerate((source, registers, target))]).to(is_real.device)
    mine, other = part.unsqueeze(1), part.unsqueeze(0)
    size = len(part)
    is_before = torch.ones(size, size, dtype=torch.bool, device=is_real.device).tril()
    open_ = (mine < 2) & (other <= mine) | (mine == 2) & (other > 0) & is_before
    seen = F.pad(is_real, (0, target), value=True)
    return open_ & seen.unsqueeze(1)
