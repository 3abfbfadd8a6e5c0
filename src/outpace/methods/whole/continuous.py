"""Denoise a whole text from Gaussian noise, in a fixed number of network calls whatever its length.

Paper: Gong et al. (2022), arXiv 2210.08933 (DiffuSeq); Gulrajani and Hashimoto (2023), arXiv 2305.18619 (Plaid); Wu et
al. (2023), arXiv 2305.09515 (AR-Diffusion); Li et al. (2025), arXiv 2505.22165 (NeoDiff); Karimi Mahabadi et al.
(2023), arXiv 2305.08379 (TESS); Meshchaninov et al. (2025), arXiv 2506.21170 (Cosmos). Which of them is at work is said
by the model (`DiffusionConfig`).
Guarantee: approximate; the same seed gives the same text, in a batch too.
Cost: `steps` calls of the network over `candidates` rows a text.
Differences: the law of each token is the last step's; a temperature varies words under it. Tokens are learnt by
    cross-entropy, not by DiffuSeq's squared errors; Plaid's schedule is piecewise linear, not a network; NeoDiff's time
    predictor is taught that the surest tokens have the least time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from outpace.methods.whole.base import WholeMethod
from outpace.models.continuous.network import Diffusion
from outpace.models.continuous.solver import Plan, solve
from outpace.models.nar.model import NarModel
from outpace.papers import Paper
from outpace.sampling.noise import fork_key
from outpace.setting import setting
from outpace.types import Context

__all__ = ["ContinuousDiffusion"]


@dataclass(frozen=True)
class ContinuousDiffusion(WholeMethod):
    """Continuous diffusion.

    Attributes:
        steps: calls of the network; fewer skip times of the same schedule.
        solver: "ddim" adds no noise, "ancestral" new noise in each step.
        times: "model", or "equal" at all places whatever the model was trained for.
        clamp: each step goes towards the likeliest tokens in place of their mean.
        self_condition: each step reads what the one before has said.
        candidates: texts from different noise; the one most like the others is taken (minimum Bayes risk).

    Raises:
        ConfigError: no steps or no candidates.
    """

    steps: int = setting(20, least=1)
    solver: Literal["ddim", "ancestral"] = "ddim"
    times: Literal["model", "equal"] = "model"
    clamp: bool = False
    self_condition: bool = True
    candidates: int = setting(1, least=1)

    name: ClassVar[str] = "continuous-diffusion"
    summary: ClassVar[str] = "Denoises a whole text from Gaussian noise in a fixed number of network calls."
    kinds: ClassVar[tuple[str, ...]] = ("diffusion", "latents")
    runs_alone: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "DiffuSeq: Sequence to Sequence Text Generation with Diffusion Models",
        "Gong et al.",
        2022,
        "2210.08933",
        134,
        "Its loss of squared errors (tokens are learnt by cross-entropy), and its corpora.",
        "outpace train captions-diffuseq",
    )

    def choose(self, model: NarModel, context: Context) -> Sequence[Tensor]:
        """Denoise; see `WholeMethod.choose`."""
        assert isinstance(model.net, Diffusion) and context.cache is not None
        net, count = model.net, self.candidates
        run = model.begin([source for source in context.sources for _ in range(count)])
        keys = [fork_key(key, at) if at else key for key in context.sampler.keys for at in range(count)]
        plan = Plan(
            steps=self.steps,
            solver=self.solver,
            times=self.times,
            is_rounded=self.clamp,
            is_conditioned=self.self_condition,
        )
        laws = [model.ended(law) for law in net.told(solve(net, run, plan, keys))]
        for _ in range(self.steps):
            context.cache.counter.add(run.is_place.numel(), len(net.encoder if net.config.is_joined else net.decoder))
        groups = [laws[at : at + count] for at in range(0, len(laws), count)]
        return [group[central([law.argmax(-1).tolist() for law in group])] for group in groups]


def central(texts: Sequence[Sequence[int]]) -> int:
    """Return the index of the text that shares most tokens and neighbours with the others (F1), or the first."""
    bags = [Counter([*text, *pairwise(text)]) for text in texts]
    shared = [
        sum(2 * (bag & other).total() / max(bag.total() + other.total(), 1) for other in bags if other is not bag)
        for bag in bags
    ]
    return int(torch.tensor(shared).argmax())
