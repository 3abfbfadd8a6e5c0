"""An autoencoder between tokens and vectors of several tokens each, which other networks then write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.errors import ConfigError
from outpace.models.editing.encoder import Layer, LayerSizes

if TYPE_CHECKING:
    from outpace.models.nar.network import Pass

__all__ = ["Compressor", "CompressorSizes", "Spread", "filled", "whole_chunks"]

_LEAST, _WEIGHT = 0.5, 1e-3  # nats of a dimension that cost nothing, and what the others cost


class CompressorSizes(LayerSizes, Protocol):
    """Sizes of a compressor.

    Attributes:
        vocab_size: V.
        chunk: K, tokens of a vector.
        dims: D, numbers of a vector.
        mixing: layers, on either side, in which vectors see each other; 0 = each chunk is compressed by itself.
        spoilt: share of the numbers of a vector that are dropped in training, so that none is needed.
    """

    @property
    def vocab_size(self) -> int: ...  # noqa: D102

    @property
    def chunk(self) -> int: ...  # noqa: D102

    @property
    def dims(self) -> int: ...  # noqa: D102

    @property
    def mixing(self) -> int: ...  # noqa: D102

    @property
    def spoilt(self) -> float: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Spread:
    """A normal law over vectors.

    Attributes:
        mean: [..., D].
        log_std: [..., D].
    """

    mean: Tensor
    log_std: Tensor

    def drawn(self, noise: Tensor) -> Tensor:
        """Return vectors for standard normal noise [..., D]."""
        return self.mean + self.log_std.exp() * noise

    def nats(self) -> Tensor:
        """Return the divergence from the standard normal law, [...], dimensions below half a nat counting as that.

        Without the floor a vector's numbers die one by one (Kingma et al., 2016, arXiv 1606.04934: free bits).
        """
        each = 0.5 * (self.mean.square() + (2 * self.log_std).exp() - 1) - self.log_std
        return each.clamp(min=_LEAST).sum(-1)


class Compressor(nn.Module):
    """K tokens to a vector of D numbers, and back.

    Paper: Shao et al. (2025), arXiv 2510.27688 (CALM), section 3: a variational autoencoder with clipped divergence and
    dropout of the vector, so that vectors near a code say the same tokens.

    Args:
        sizes: its sizes.
    """

    def __init__(self, sizes: CompressorSizes) -> None:
        super().__init__()
        self.sizes, width = sizes, sizes.width
        self.embed_tokens = nn.Embedding(sizes.vocab_size, width)
        nn.init.normal_(self.embed_tokens.weight, std=width**-0.5)
        self.join, self.open = nn.Linear(sizes.chunk * width, width), _mlp(width)
        self.code = nn.Linear(width, 2 * sizes.dims)
        self.read, self.close = nn.Linear(sizes.dims, width), _mlp(width)
        self.split, self.last = nn.Linear(width, sizes.chunk * width), _mlp(width)
        self.norm = nn.LayerNorm(width)
        self.before = nn.ModuleList(Layer(sizes) for _ in range(sizes.mixing))
        self.after = nn.ModuleList(Layer(sizes) for _ in range(sizes.mixing))

    def encode(self, tokens: Tensor) -> Spread:
        """Return the law of the vectors, [..., L / K, D] each, of tokens [..., L]."""
        size = self.sizes.chunk
        state = self.join(self.embed_tokens(tokens).unflatten(-2, (-1, size)).flatten(-2))
        state = _mixed(state + self.open(state), self.before)
        mean, log_std = self.code(state).chunk(2, -1)
        return Spread(mean, log_std.clamp(-8, 2))

    def decode(self, vectors: Tensor) -> Tensor:
        """Return log-probabilities [..., L, V] of vectors [..., L / K, D]."""
        state = self.read(vectors)
        state = self.split(_mixed(state + self.close(state), self.after))
        state = state.unflatten(-1, (self.sizes.chunk, -1)).flatten(-3, -2)
        logits: Tensor = self.norm(state + self.last(state)) @ self.embed_tokens.weight.T
        return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)

    def loss(self, tokens: Tensor) -> Tensor:
        """Return per row [B], in nats, what tokens [B, L] cost behind spoilt vectors, and the vectors themselves."""
        spread = self.encode(tokens)
        vectors = F.dropout(spread.drawn(torch.randn_like(spread.mean)), self.sizes.spoilt)
        said = self.decode(vectors).gather(-1, tokens[..., None])[..., 0]
        cost: Tensor = _WEIGHT * spread.nats().sum(1) - said.sum(1)
        return cost


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))


def _mixed(state: Tensor, layers: nn.ModuleList) -> Tensor:
    seen = torch.ones(1, 1, 1, state.shape[-2], dtype=torch.bool, device=state.device)
    for layer in layers:
        state = layer(state, seen)
    return state


def filled(run: Pass, length: int, end: int) -> Tensor:
    """Return the targets of a pass with all their ends, [B, length].

    Raises:
        ConfigError: a target has no place for its end.
    """
    most = int(run.lengths.max())
    if most >= length:
        raise ConfigError(f"A text of {most} tokens and its end do not fit into {length} places.", "Cut it.")
    given = F.pad(run.targets, (0, length - run.targets.shape[1]))
    is_text = torch.arange(length, device=given.device) < run.lengths[:, None]
    return torch.where(is_text, given, end)


def whole_chunks(length: int, chunk: int, dims: int) -> int:
    """Return how many vectors a text has.

    Raises:
        ConfigError: the text does not fill them.
    """
    if min(length, chunk, dims) < 1 or length % chunk:
        raise ConfigError(
            f"A text of {length} places does not fill vectors of {chunk} tokens and {dims} numbers.",
            f"Take a multiple of {chunk}, such as {max(1, length // max(chunk, 1)) * chunk}.",
        )
    return length // chunk
