"""The one denoiser: what a text is, read from what noise has left of it, its source, and what was read before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.errors import ConfigError
from outpace.models.nar.network import NarConfig, NarNet, Pass

from . import losses, solver
from .compressor import filled
from .process import scales
from .schedule import Schedule

__all__ = ["Diffusion", "DiffusionConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionConfig(NarConfig):
    """Sizes and choices of a diffusion model.

    Attributes:
        length: L, places of a text; what is behind its end are ends.
        dims: D, of an embedding.
        space: what is diffused: "embedding" (vectors of tokens, all of one length) or "simplex" (TESS: logits over the
            vocabulary, 1 for the token and -1 for the others, read as `sharpness` times as much).
        schedule: see `Schedule`.
        times: "equal" at all places, "staggered" (AR-Diffusion) or "poisson" (NeoDiff: each token's own).
        levels: of noise, for staggered and Poisson times.
        objective: "bound" (Plaid: the likelihood's, which needs a learned schedule, embeddings and equal times) or
            "cross-entropy" of the tokens.
        is_joined: source and text are one sequence, of which the text alone is noised (DiffuSeq); else cross-attention.
        sharpness: of the simplex.
        steps: of the solver where nobody says how many.

    Raises:
        ConfigError: choices that contradict each other.
    """

    length: int = 32
    dims: int = 64
    space: Literal["embedding", "simplex"] = "embedding"
    schedule: Literal["cosine", "sqrt", "linear", "learned"] = "cosine"
    times: Literal["equal", "staggered", "poisson"] = "equal"
    levels: int = 64
    objective: Literal["bound", "cross-entropy"] = "cross-entropy"
    is_joined: bool = False
    sharpness: float = 5.0
    steps: int = 10

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        if (self.objective == "bound") != (self.schedule == "learned"):
            raise ConfigError("A schedule is learned from the bound, and from it alone.", "Give both or neither.")
        if self.objective == "bound" and (self.space, self.times) != ("embedding", "equal"):
            raise ConfigError("The bound is of embeddings whose times are equal.", "Leave space and times out.")
        if min(self.length, self.dims, self.levels, self.steps) < 1:
            raise ConfigError("A diffusion model has at least one place, dimension, level and step.")


class Diffusion(NarNet):
    """A text of L places, denoised as a whole.

    The law of each token is the network's, times the likelihood of what noise left of the token itself (Gulrajani and
    Hashimoto, 2023, arXiv 2305.18619); the clean text is the mean of the tokens' vectors under it.
    """

    Config = DiffusionConfig
    kind: ClassVar[str] = "diffusion"
    own_layers: ClassVar[bool] = True
    config: DiffusionConfig

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__(config)
        width = config.width
        self.schedule = Schedule(config.schedule)
        self.token_embed = nn.Embedding(config.vocab_size, config.dims)
        self.read_state, self.read_before = nn.Linear(config.dims, width), nn.Linear(config.dims, width, bias=False)
        self.read_time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.said = nn.Linear(width, config.vocab_size)
        if config.times == "poisson":
            self.predictor = nn.Sequential(nn.Linear(width + 32, width), nn.SiLU(), nn.Linear(width, 1))

    @property
    def size(self) -> int:
        """Places that are diffused."""
        return self.config.length

    @property
    def dims(self) -> int:
        """Numbers in which a token is diffused."""
        return self.config.dims if self.config.space == "embedding" else self.config.vocab_size

    @property
    def vectors(self) -> Tensor:
        """Embeddings of all tokens, [V, D], each of squared length D."""
        return F.normalize(self.token_embed.weight, dim=-1) * math.sqrt(self.config.dims)

    def clean(self, tokens: Tensor) -> Tensor:
        """Return what is diffused of tokens, [..., D] or [..., V]."""
        if self.config.space == "embedding":
            return self.vectors[tokens]
        return 2 * F.one_hot(tokens, self.config.vocab_size).to(self.said.weight.dtype) - 1

    def mean(self, log_probs: Tensor, is_rounded: bool = False) -> Tensor:
        """Return the clean text under laws [B, L, V]: its mean, or, rounded, that of the likeliest tokens."""
        if is_rounded or self.config.space == "simplex":
            return self.clean(log_probs.argmax(-1))
        return log_probs.exp().to(self.vectors.dtype) @ self.vectors

    def padded(self, run: Pass) -> Tensor:
        """Return the targets with all their ends, [B, L].

        Raises:
            ConfigError: a target has no place for its end.
        """
        return filled(run, self.config.length, self.config.end_token)

    def encode(self, sources: Tensor, is_real: Tensor) -> Tensor:
        """Return the states of sources; where source and text are one sequence, the source's clean vectors."""
        return self.vectors[sources] if self.config.is_joined else super().encode(sources, is_real)

    def denoise(self, run: Pass, state: Tensor, gamma: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the law of each token as log-probabilities [B, L, V], and the last states [B, L, W].

        Args:
            run: sources, encoded.
            state: [B, L, D], the noisy text.
            gamma: [B, L], how noisy each token is.
            before: [B, L, V], what the network said before (self-conditioning); None = nothing.
        """
        hidden = self._body(run, self._inputs(state, gamma, before), gamma)
        logits = self.said(hidden).float() if hidden.dtype != torch.float64 else self.said(hidden)
        if self.config.space == "embedding":
            with torch.autocast(state.device.type, enabled=False):
                alpha, sigma = scales(gamma)
                likelihood = state.to(logits.dtype) @ self.vectors.T.to(logits.dtype)
                logits = logits + (alpha / sigma**2)[..., None].to(logits.dtype) * likelihood
        return logits.log_softmax(-1), hidden

    def _inputs(self, state: Tensor, gamma: Tensor, before: Tensor | None) -> Tensor:
        if self.config.space == "simplex":
            share = (self.config.sharpness * state).softmax(-1)
            if before is not None:
                share = (share + before.exp().to(share.dtype)) / 2
            state, before = share @ self.vectors, None
        found: Tensor = self.read_state(state)
        if before is not None:
            found = found + self.read_before(self.mean(before))
        return found

    def _body(self, run: Pass, inputs: Tensor, gamma: Tensor) -> Tensor:
        inputs = inputs + self.read_time(waves(gamma).to(inputs.dtype))
        if not self.config.is_joined:
            run.inputs = inputs
            return self.decode(run)
        source = self.read_state(run.states) + self.source_positions.weight[: run.states.shape[1]]
        joined = torch.cat([source, inputs + self.place_positions.weight[: inputs.shape[1]]], 1)
        seen = torch.cat([run.is_real, run.is_place], 1)[:, None, None, :]
        for layer in self.encoder:
            joined = layer(joined, seen)
        normed: Tensor = self.encoder_norm(joined[:, source.shape[1] :])
        return normed

    def predicted(self, hidden: Tensor, overall: Tensor) -> Tensor:
        """Return the time [B, L] of each token at an overall time [B], by its last state [B, L, W]."""
        moment = waves(10 * overall)[:, None].expand(-1, hidden.shape[1], -1).to(hidden.dtype)
        found: Tensor = self.predictor(torch.cat([hidden, moment], -1))[..., 0]
        return found.sigmoid().to(overall.dtype)

    def places(self, run: Pass) -> tuple[Tensor, Tensor]:
        """Return L places for each row, with nothing in them yet."""
        shape = len(run.sources), self.size
        inputs = run.states.new_zeros(*shape, self.config.width)
        return inputs, torch.ones(shape, dtype=torch.bool, device=inputs.device)

    def finish(self, run: Pass) -> list[Tensor]:
        """Denoise in as many steps as the config says, from the same noise for every row."""
        return [self.told(solver.solve(self, run, solver.Plan(steps=self.config.steps), [0] * len(run.sources)))]

    def told(self, said: Tensor) -> Tensor:
        """Return log-probabilities [B, L, V] of the tokens, from what `denoise` said."""
        return said

    def loss(self, run: Pass) -> Tensor:
        """Return the loss [B] that the network learns from, in nats; draws are torch's."""
        return losses.bound(self, run) if self.config.objective == "bound" else losses.cross_entropy(self, run)

    def nll(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return the cross-entropy [B] of the targets under the laws of the last step."""
        return -outputs[0].gather(-1, self.padded(run)[..., None])[..., 0].sum(1)

    def aligned(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return the targets with their ends."""
        return self.padded(run)

    def laws(self, outputs: Sequence[Tensor], is_place: Tensor) -> list[Tensor]:
        """Return the laws of the last step."""
        return list(outputs[0])


def waves(values: Tensor) -> Tensor:
    """Return 32 sines and cosines of values [...], which lie between about -10 and 10."""
    rates = 2.0 ** torch.linspace(-4, 2, 16, dtype=values.dtype, device=values.device)
    angles = values[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)
