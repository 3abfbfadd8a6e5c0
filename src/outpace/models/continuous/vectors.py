"""A causal network over vectors of several tokens each: the next vector is drawn, and its tokens are read off it.

Paper: Shao et al. (2025), arXiv 2510.27688 (CALM). No vector has a likelihood: the network learns from the energy
score, which is strictly proper and asks only for draws (section 4), and reads the tokens of the vectors before.
Differences: behind an encoder of a source, as its siblings here; eight draws of the network and as many of the
autoencoder per vector; the step's head is two gated layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.errors import ConfigError
from outpace.models.nar.network import NarConfig, NarNet, Pass
from outpace.sampling.noise import Stream, node_key, uniform

from .compressor import Compressor, filled, whole_chunks

__all__ = ["Vectors", "VectorsConfig", "energy_score"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorsConfig(NarConfig):
    """Sizes of a model that writes vectors.

    Attributes:
        length: L, places of a text, ends included; a multiple of `chunk`.
        chunk: K, tokens of a vector.
        dims: D, numbers of a vector.
        mixing: none, so that a chunk's tokens are known when its vector is.
        spoilt: share of a vector that is dropped while the autoencoder learns.
        noise: numbers that a draw begins with.
        draws: of a vector, in training.
        stage: "chunks" trains the autoencoder, "vectors" all but it.

    Raises:
        ConfigError: a text that the vectors do not fill, or fewer draws than two.
    """

    length: int = 48
    chunk: int = 4
    dims: int = 64
    mixing: int = 0
    spoilt: float = 0.1
    noise: int = 32
    draws: int = 8
    stage: Literal["chunks", "vectors"] = "vectors"

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        whole_chunks(self.length, self.chunk, self.dims)
        if self.draws < 2 or self.noise < 1 or self.mixing or self.stage not in ("chunks", "vectors"):
            raise ConfigError(
                "The energy score needs two draws from noise, and chunks that are compressed by themselves.",
                "Take at least 2 draws, 1 number of noise, and no mixing.",
            )


class _Draw(nn.Module):
    """From a state and noise to a vector: residual layers over the noise, each reading the state."""

    def __init__(self, config: VectorsConfig) -> None:
        super().__init__()
        width = config.width
        self.begin, self.end = nn.Linear(config.noise, width), nn.Linear(width, config.dims)
        self.reads = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(2)
        )

    def forward(self, hidden: Tensor, noise: Tensor) -> Tensor:
        state = self.begin(noise)
        for read, layer in zip(self.reads, self.layers, strict=True):
            state = state + layer(state + read(hidden))
        found: Tensor = self.end(state)
        return found


class Vectors(NarNet):
    """A text of L / K vectors, written one after the other."""

    Config = VectorsConfig
    kind: ClassVar[str] = "vectors"
    own_layers: ClassVar[bool] = True
    config: VectorsConfig

    def __init__(self, config: VectorsConfig) -> None:
        super().__init__(config)
        self.compressor, self.draw = Compressor(config), _Draw(config)
        self.read_chunk = nn.Sequential(
            nn.Linear(config.chunk * config.width, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
        )
        self.compressor.requires_grad_(config.stage == "chunks")

    @property
    def count(self) -> int:
        """Vectors of a text."""
        return self.config.length // self.config.chunk

    def clean(self, tokens: Tensor) -> Tensor:
        """Return the likeliest vectors [B, L / K, D] of tokens [B, L]."""
        return self.compressor.encode(tokens).mean

    def places(self, run: Pass) -> tuple[Tensor, Tensor]:
        """Return a place for each vector, with nothing in them yet."""
        shape = len(run.sources), self.count
        inputs = run.states.new_zeros(*shape, self.config.width)
        return inputs, torch.ones(shape, dtype=torch.bool, device=inputs.device)

    def states(self, run: Pass, tokens: Tensor) -> Tensor:
        """Return the state [B, n + 1, W] behind each vector of tokens [B, n * K], the first behind none."""
        read = self.read_chunk(self.embed_tokens(tokens).unflatten(1, (-1, self.config.chunk)).flatten(2))
        inputs = F.pad(read, (0, 0, 1, 0)) + self.place_positions.weight[: read.shape[1] + 1]
        size = inputs.shape[1]
        seen = torch.ones(size, size, dtype=torch.bool, device=tokens.device).tril()[None, None]
        state, real = self.drop(inputs), run.is_real[:, None, None, :]
        for layer in self.decoder:
            state = layer(state, seen, run.states, real)
        normed: Tensor = self.decoder_norm(state)
        return normed

    def step(self, run: Pass, tokens: Tensor, keys: Sequence[int], draws: int) -> Tensor:
        """Return draws of the next vector's tokens after tokens [B, n * K]: log-probabilities [B, draws, K, V]."""
        hidden = self.states(run, tokens)[:, -1:]
        place = torch.full((len(keys), 1), tokens.shape[1], device=tokens.device)
        numbers = torch.arange(draws * self.config.noise, device=tokens.device)
        noise = uniform(node_key(list(keys), Stream.TARGET, place), numbers)[:, 0] - 0.5
        noise = noise.unflatten(1, (draws, -1)).to(hidden)
        return self.compressor.decode(self.draw(hidden, noise)[:, :, None])

    @torch.no_grad()
    def finish(self, run: Pass) -> list[Tensor]:
        """Write every row from the same noise, one draw a vector; return the laws of its tokens."""
        tokens, laws = run.sources.new_zeros(len(run.sources), 0), list[Tensor]()
        for _ in range(self.count):
            laws.append(self.step(run, tokens, [0] * len(tokens), 1)[:, 0])
            tokens = torch.cat([tokens, laws[-1].argmax(-1)], 1)
        return [torch.cat(laws, 1)]

    def loss(self, run: Pass) -> Tensor:
        """Return the loss [B] of the stage: nats of the autoencoder, or energy scores of the vectors up to the end."""
        config, tokens = self.config, filled(run, self.config.length, self.config.end_token)
        if config.stage == "chunks":
            return self.compressor.loss(tokens)
        with torch.no_grad():
            spread = self.compressor.encode(tokens)
            wanted = spread.drawn(torch.randn_like(spread.mean.expand(config.draws, *spread.mean.shape)))
        hidden = self.states(run, tokens[:, : -config.chunk])
        noise = torch.rand_like(hidden[..., :1].expand(config.draws, *hidden.shape[:2], config.noise)) - 0.5
        drawn = self.draw(hidden, noise)
        drawn = drawn if drawn.dtype == torch.float64 else drawn.float()
        score = energy_score(drawn, wanted.to(drawn))
        first = torch.arange(self.count, device=tokens.device) * config.chunk
        return (score * (first <= run.lengths[:, None])).sum(1)

    def nll(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return the cross-entropy [B] of the targets under the laws of the tokens of a text that was drawn."""
        return -outputs[0].gather(-1, self.aligned(outputs, run)[..., None])[..., 0].sum(1)

    def aligned(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return the targets with their ends."""
        del outputs
        return filled(run, self.config.length, self.config.end_token)

    def laws(self, outputs: Sequence[Tensor], is_place: Tensor) -> list[Tensor]:
        """Return the laws of the tokens."""
        del is_place
        return list(outputs[0])


def energy_score(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Return the energy score [...] of draws [N, ..., D] for M draws [M, ..., D] of the true law; least is best.

    Paper: Gneiting and Raftery (2007), strictly proper scoring rules: twice the mean distance to the truth, less the
    mean distance between two draws.
    """
    ours, theirs = drawn.movedim(0, -2), wanted.movedim(0, -2)
    apart, among = torch.cdist(ours, theirs).mean((-2, -1)), _distances(ours).sum((-2, -1))
    return 2 * apart - among / (len(drawn) * (len(drawn) - 1))


def _distances(points: Tensor) -> Tensor:
    """Return the distances [..., N, N] of points [..., N, D], with a gradient of 0 where a point meets itself."""
    squares = (points[..., :, None, :] - points[..., None, :, :]).square().sum(-1)
    is_same = squares == 0
    return torch.where(is_same, 0.0, squares.masked_fill(is_same, 1.0).sqrt())
