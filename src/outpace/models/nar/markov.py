"""A Markov transformer: a decoder that says each token from at most a few before it, so that places wait for no others.

Paper: Deng and Rush (2020), arXiv 2006.01112, section 4: barriers in training, through which attention does not reach.
Differences: a length is predicted, and texts within a slack of it compete by their ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.models.editing.encoder import Layer

from .lengths import Lengths
from .network import UNSAID, NarConfig, NarNet, Pass

__all__ = ["Markov", "MarkovConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkovConfig(NarConfig):
    """Sizes of a Markov transformer.

    Attributes:
        order: most tokens that a token depends on.
        reach: texts are at most so many tokens longer or shorter than their sources.
    """

    order: int = 2
    reach: int = 32


class Markov(NarNet):
    """A causal decoder with barriers; every place behind one reads the start of a text."""

    kind = "markov"
    Config = MarkovConfig
    own_layers = True

    def __init__(self, config: MarkovConfig) -> None:
        super().__init__(config)
        self.lengths = Lengths(config.width, config.reach, config.max_positions - 1)
        self.unsaid = (config.start_token,)

    # What rules use.

    def resumed(self, outputs: Sequence[Tensor]) -> Pass:
        """Return a pass for what `finish` gave, over no places yet."""
        _, _, states, is_real = outputs
        none = is_real.new_zeros(len(states), 0, dtype=torch.int64)
        return Pass(none, is_real, states, states[:, :0], is_real[:, :0], none, none[:, 0:0].sum(1))

    def given(self, run: Pass, contexts: Tensor, at: Tensor) -> Tensor:
        """Return the log-probabilities [B, N, V] of tokens at places [B, N], given the m before each, [B, N, m].

        Before a text stands its start, as often as a context asks for.
        """
        size = contexts.shape[2] + 1
        reads = F.pad(contexts, (1, 0), value=self.config.start_token)
        places = at[:, :, None] + torch.arange(1 - size, 1, device=at.device)
        state = self.embed_tokens(reads) + self.place_positions.weight[places.clamp(min=0)]
        earlier = torch.ones(size, size, dtype=torch.bool, device=at.device).tril()
        own = torch.eye(size, dtype=torch.bool, device=at.device)
        seen = (earlier & (places >= 0)[:, :, None] | own).flatten(0, 1)[:, None]
        state = self._through(state.flatten(1, 2), seen, run, parts=contexts.shape[1])
        return self.head(state.unflatten(1, (-1, size))[:, :, -1])

    def _through(self, state: Tensor, seen: Tensor, run: Pass, parts: int = 1) -> Tensor:
        state = self.drop(state)
        for layer in self.decoder:
            assert isinstance(layer, Layer)
            state = layer(state, seen, run.states, run.is_real[:, None, None, :], parts=parts)
        normed: Tensor = self.decoder_norm(state)
        return normed

    # What every kind gives.

    def places(self, run: Pass) -> tuple[Tensor, Tensor]:
        """Lay out the target's tokens and its end, barriers among them; without one, as many as the text may have."""
        law = run.extra["length law"] = self.lengths(run.states, run.is_real)
        is_told = run.targets.shape[1] > 0
        lengths = run.lengths + 1 if is_told else self.lengths.best(law, run.is_real)[:, 0]
        size = int(lengths.max())
        at = torch.arange(size, device=lengths.device)
        said = F.pad(run.targets, (0, size - run.targets.shape[1]))
        said = torch.where(at < run.lengths[:, None], said, self.config.end_token)
        is_barrier = torch.ones_like(said, dtype=torch.bool)
        if is_told:  # as many places see 0 tokens before them as see 1, 2, ...
            period = self.config.order + 1
            first = torch.randint(period, (len(said), 1), device=said.device)
            is_barrier = ((at + first) % period == 0) | (at == 0)
        reads = torch.where(is_barrier, self.config.start_token, F.pad(said[:, :-1], (1, 0)))
        run.extra |= {"said": said, "parts": is_barrier.cumsum(1)}
        return self.embed_tokens(reads), at < lengths[:, None]

    def decode(self, run: Pass) -> Tensor:
        """Return the last states [B, L, W] of the places, each of which sees those since the last barrier."""
        parts = run.extra["parts"]
        seen = (parts[:, :, None] == parts[:, None]).tril()[:, None]
        return self._through(run.inputs + self.place_positions.weight[: run.inputs.shape[1]], seen, run)

    def finish(self, run: Pass) -> list[Tensor]:
        """Return the log-probabilities, then the law of the length, the source's states, and which are real.

        In training they stand behind the barriers drawn; for a target otherwise, behind as many tokens as the order
        allows; without one, behind none.
        """
        is_exact = run.targets.shape[1] > 0 and not self.training
        laws = self._exact(run) if is_exact else self.head(self.decode(run))
        return [laws, run.extra["length law"], run.states, run.is_real]

    def _exact(self, run: Pass) -> Tensor:
        said, order = run.extra["said"], self.config.order
        contexts = F.pad(said[:, :-1], (order + 1, 0), value=self.config.start_token).unfold(1, order, 1)[:, 1:]
        return self.given(run, contexts, torch.arange(said.shape[1], device=said.device).expand(said.shape))

    def nll(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Add up what the tokens and the end cost."""
        said = outputs[0].gather(2, run.extra["said"][:, :, None])[:, :, 0]
        return -torch.where(run.is_place, said, 0.0).sum(1)

    def aligned(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return the targets and their ends."""
        said: Tensor = run.extra["said"]
        return said.masked_fill(~run.is_place, UNSAID)

    def laws(self, outputs: Sequence[Tensor], is_place: Tensor) -> list[Tensor]:
        """Return the laws of the places that the likeliest length has, each by itself."""
        return [row[real] for row, real in zip(outputs[0], is_place, strict=True)]
