"""A causal network that writes places in any order: each input knows its own place, and the place that is asked next.

Source: Pannatier et al. (2024), sigma-GPTs, arXiv 2404.09562, section 2: a decoder over shuffled tokens with two
encodings of positions. One network so holds the law of any place given any known ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.errors import ConfigError

__all__ = ["MODEL_TYPE", "AnyOrderConfig", "AnyOrderNet", "check_order", "config_of"]

MODEL_TYPE = "outpace_any_order"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyOrderConfig:
    """Sizes.

    Attributes:
        vocab: V.
        places: most places of a text.
        width: of the residual stream.
        layers: Transformer layers.
        heads: attention heads; divides `width`.
    """

    vocab: int
    places: int
    width: int = 64
    layers: int = 2
    heads: int = 2


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        parts = self.mix(self.first(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=visible)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        wider: Tensor = self.down(F.gelu(self.up(self.second(x))))
        return x + wider


class AnyOrderNet(nn.Module):
    """The network.

    Args:
        config: its sizes.
    """

    def __init__(self, config: AnyOrderConfig) -> None:
        super().__init__()
        self.config = config
        # One more token and one more place stand for the beginning, which nothing comes before.
        self.embed_tokens = nn.Embedding(config.vocab + 1, config.width)
        self.embed_place = nn.Embedding(config.places + 1, config.width)
        self.embed_next = nn.Embedding(config.places, config.width)
        self.layers = nn.ModuleList(_Layer(config.width, config.heads) for _ in range(config.layers))
        self.norm, self.head = nn.LayerNorm(config.width), nn.Linear(config.width, config.vocab)

    def laid(self, tokens: Tensor, place: Tensor, following: Tensor) -> Tensor:
        """Return inputs [B, T, width] of tokens, their own places, and the places asked next, each [B, T] int64.

        The beginning is token V at place `places`.
        """
        laid: Tensor = self.embed_tokens(tokens) + self.embed_place(place) + self.embed_next(following)
        return laid

    def read(self, x: Tensor, visible: Tensor) -> Tensor:
        """Return log-probabilities [B, T, V] of inputs [B, T, width]; `visible` [..., T, T] says who sees whom."""
        for layer in self.layers:
            x = layer(x, visible)
        logits: Tensor = self.head(self.norm(x))
        return logits.log_softmax(-1)

    def _check(self, tokens: Tensor, order: Tensor) -> None:
        if tokens.shape[1] > self.config.places:
            raise ConfigError(
                f"The text has {tokens.shape[1]} places, but the network knows {self.config.places}.", "Shorten it."
            )
        check_order(order, tokens.shape[1])

    def _inputs(self, tokens: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Return token and place of each input [B, T]: those before it in the order, the beginning first."""
        start = torch.full_like(order[:, :1], self.config.vocab)
        shuffled = torch.cat([start, tokens.gather(1, order)[:, :-1]], 1)
        return shuffled, torch.cat([torch.full_like(start, self.config.places), order[:, :-1]], 1)

    def forward(self, tokens: Tensor, order: Tensor) -> Tensor:
        """Return log-probabilities [B, T, V]: entry i is the law of place `order[i]`, those before it known.

        Args:
            tokens: [B, T] int64, by place.
            order: [B, T] int64, permutations of the places.

        Raises:
            ConfigError: an order names a place twice, or leaves one out, or there are more places than it knows.
        """
        self._check(tokens, order)
        read, place = self._inputs(tokens, order)
        size = order.shape[1]
        visible = torch.ones(size, size, dtype=torch.bool, device=order.device).tril()
        return self.read(self.laid(read, place, order), visible)


def config_of(net: AnyOrderNet) -> dict[str, Any]:
    """Return the `config.json` of a network."""
    return {"model_type": MODEL_TYPE, **asdict(net.config)}


def check_order(order: Tensor, places: int) -> None:
    """Refuse what is no order of all places.

    Args:
        order: [B, T] int64.
        places: T.

    Raises:
        ConfigError: a place is left out or named twice.
    """
    everything = torch.arange(places, device=order.device)
    if order.ndim != 2 or order.shape[1] != places or not bool((order.sort(1).values == everything).all()):
        raise ConfigError(f"The order does not name each of the {places} places once.", "Give a permutation of them.")
