"""A target with known answers: it writes what a drafter once drafted, so that the same drafter is always right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from outpace.api.engine import LanguageModel
from outpace.cache import Cache, Counter
from outpace.heads.model import HeadModel
from outpace.testing.toy import ToyModel
from outpace.types import NO_OUTPUTS, Adapter, Outputs, Scores

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]
VOCAB, HIDDEN, LAYERS = 48, 16, 8


class Obliging(Adapter):
    """A toy model whose states depend on the whole text, and whose next token is that of a script, by place alone."""

    def __init__(self, vocab: int = VOCAB, hidden: int = HIDDEN, layers: int = LAYERS, context: int = 512) -> None:
        self.inner = ToyModel(vocab, layers, hidden=hidden, max_positions=context)
        self.capabilities, self.dtype = self.inner.capabilities, torch.float64
        self.script: dict[int, int] = {}
        self.is_learning = False

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        return self.inner.new_cache(rows, capacity, counter)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.inner.embed(tokens)

    def head(self, hidden: Tensor) -> Tensor:
        return self.inner.head(hidden)

    def score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS,
        inputs: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Scores:
        scores = self.inner.score(tokens, position, visible, cache, ask, outputs, inputs, skip)
        if self.is_learning:
            for place, token in zip(position[0].tolist(), tokens[0].tolist(), strict=True):
                if place >= len(PROMPT):
                    self.script.setdefault(place, token)
        vocab = self.capabilities.vocab_size
        asked = position if ask is None else position.gather(1, ask)
        follows = [[self.script.get(place + 1, (7 * place + 3) % vocab) for place in row] for row in asked.tolist()]
        for row in asked.tolist() if self.is_learning else []:
            self.script |= {p + 1: self.script.get(p + 1, (7 * p + 3) % vocab) for p in row if p >= len(PROMPT) - 1}
        return Scores(
            60.0
            * torch.nn.functional.one_hot(torch.tensor(follows, dtype=torch.int64).view(asked.shape), vocab).double(),
            *_rest(scores),
        )

    @contextmanager
    def learning(self) -> Iterator[None]:
        self.is_learning = True
        yield
        self.is_learning = False


def _rest(scores: Scores) -> tuple[object, object, object]:
    return scores.taps, scores.heads, scores.last


def write(target: Obliging, model: HeadModel, count: int = 12) -> float:
    """Tokens a round of a drafter."""
    result = LanguageModel(target).generate(
        [PROMPT],
        method="draft-model",
        options={"draft_len": model.net.config.depth, "is_adaptive": False},
        models={"draft": model},
        max_tokens=count,
        ignore_eos=True,
    )[0]
    return result.usage.num_emitted / result.usage.num_steps


def teach(target: Obliging, model: HeadModel) -> float:
    """Let the target write what the drafter drafts, from now on; returns its tokens a round, the known answer."""
    target.script.clear()
    with target.learning():
        write(target, model)
    return write(target, model)


def scattered(model: HeadModel, scale: float = 1.0, seed: int = 0) -> HeadModel:
    """Give a drafter weights at random, norms too, so that every convention matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.net.parameters():
            size = weight.shape[-1] if weight.dim() > 1 else 1
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32).to(weight)
            weight.copy_(scale * noise * size**-0.5 if weight.dim() > 1 else 1 + 0.5 * noise)
    return model
