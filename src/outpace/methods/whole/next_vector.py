"""Draw a text vector by vector, each of several tokens: one call of the network per vector, not per token.

Paper: Shao et al. (2025), arXiv 2510.27688 (CALM), sections 3 to 6.
Guarantee: approximate. At `temperature` T each vector's tokens have the law p ** (1 / T) of the model's own p, unless
    more than `most` draws are wanted; the same seed gives the same text, in a batch too.
Cost: one call per `chunk` tokens of the model, each over the vectors before; `most` draws of a small head where T < 1.
Differences: vectors' states are computed anew in each call (no cache); the engine's own --temperature varies tokens
    under what the drawn vector says of each, which is all but certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from outpace.methods.whole.base import WholeMethod
from outpace.models.continuous.vectors import Vectors
from outpace.models.nar.model import NarModel
from outpace.papers import Paper
from outpace.sampling.likelihood_free import sharpened
from outpace.sampling.noise import Stream, node_key, uniform
from outpace.setting import setting
from outpace.types import Context

__all__ = ["NextVector"]


@dataclass(frozen=True)
class NextVector(WholeMethod):
    """Next-vector prediction.

    Attributes:
        temperature: of the law of a vector's tokens; 1 = one draw a vector.
        most: draws of a vector at most; where they run out, the largest groups of agreeing ones are taken.

    Raises:
        ConfigError: a temperature above 1, which a law without likelihoods does not have.
    """

    temperature: float = setting(1.0, above=0, most=1)
    most: int = setting(200, least=2)

    name: ClassVar[str] = "next-vector"
    summary: ClassVar[str] = "Draws vectors of several tokens, one network call each, at a temperature up to 1."
    kinds: ClassVar[tuple[str, ...]] = ("vectors",)
    runs_alone: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "Continuous Autoregressive Language Models",
        "Shao et al.",
        2025,
        "2510.27688",
        102,
        "Its sizes, and BrierLM.",
        "outpace train stories-vectors",
    )

    def choose(self, model: NarModel, context: Context) -> Sequence[Tensor]:
        """Draw vectors until every row has ended; see `WholeMethod.choose`."""
        assert isinstance(model.net, Vectors) and context.cache is not None
        net, keys = model.net, list(context.sampler.keys)
        run, draws = model.begin(context.sources), self.most if self.temperature < 1 else 1
        tokens, laws = run.sources.new_zeros(len(keys), 0), list[Tensor]()
        for _ in range(net.count):
            drawn = net.step(run, tokens, keys, draws)
            context.cache.counter.add(tokens.shape[1] // net.config.chunk * len(keys) + len(keys), len(net.decoder))
            place = torch.full((len(keys), 1), tokens.shape[1])
            chances = uniform(node_key(keys, Stream.ACCEPT, place), torch.arange(draws))[:, 0].tolist()
            texts = drawn.argmax(-1).tolist()
            taken = [
                sharpened(list(map(tuple, text)), chance, self.temperature)[0]
                for text, chance in zip(texts, chances, strict=True)
            ]
            laws.append(drawn[torch.arange(len(keys)), torch.tensor(taken)])
            tokens = torch.cat([tokens, laws[-1].argmax(-1)], 1)
            if bool((tokens == model.end).any(1).all()):
                break
        return [model.ended(law) for law in torch.cat(laws, 1)]
