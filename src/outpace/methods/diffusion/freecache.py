"""Freeze the decided text in the cache, and let a small causal model say how much of each step to keep.

Paper: Hu et al. (2025), arXiv 2505.21467 (FreeCache, section 4.1, and guided diffusion, section 4.2).
Guarantee: approximate. The reference is the same model, order, block and cache with one token per step, which is what
    it is without a guide.
Cost: per step one forward of the places that are not frozen, and one of the guide over the block; the guide's cache.
Differences: drawn tokens stand at their own temperature, where the paper takes the likeliest; the masks behind the
    block are all forwarded unless `ahead` says less.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from outpace.canvas import CACHES, ORDERS, Canvas, Policy, Ranked, Reading, make_policy
from outpace.canvas.row import Bools
from outpace.methods.base import Paper
from outpace.methods.diffusion.guided import GuidedCanvas
from outpace.methods.setting import setting
from outpace.sampling import Sampler
from outpace.types import Needs

__all__ = ["FreeCache"]


@dataclass(frozen=True)
class FreeCache(GuidedCanvas):
    """FreeCache with guided diffusion.

    Attributes:
        cache: "free" freezes the entries of the prompt and of the decided text; others as in masked-diffusion.
        window: places behind the first mask that are computed anew all the same.
        is_guided: let the guide decide; False writes one place per step in the given order.
        top_k: the guide agrees with a token among its `top_k` likeliest,
        ratio: that is at least `ratio` times as likely, to it, as its likeliest.
        order: without a guide, what is written first, as in masked-diffusion.

    Raises:
        ConfigError: a window below 0, a top_k below 1, a ratio outside [0, 1], or an unknown order.
    """

    cache: str = setting("free", among=CACHES)
    window: int = setting(16, least=0)
    is_guided: bool = True
    top_k: int = setting(2, least=1)
    ratio: float = setting(0.5, least=0, most=1)
    order: str = setting("confidence", among=ORDERS)

    name: ClassVar[str] = "freecache"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Unmasks as far as a small causal model agrees, over a frozen cache of the decided text."
    paper: ClassVar[Paper] = Paper(
        "Accelerating Diffusion Language Model Inference via Efficient KV Caching and Guided Diffusion",
        "Hu et al.",
        2025,
        "2505.21467",
        69,
        "Guides of another vocabulary.",
    )

    @property
    def needs(self) -> Needs:
        """A masked model, and a causal guide unless it is left out."""
        return super().needs if self.is_guided else replace(super().needs, models=(), model_attention={})

    @property
    def rule(self) -> Ranked:
        """The rule without a guide: one place per step."""
        return Ranked(self.order)

    def policy(self, canvas: Canvas) -> Policy:
        """Return the cache policy, with the window where it has one."""
        policy = super().policy(canvas)
        return make_policy(policy.name, policy.refresh, self.window if policy.name == "free" else policy.radius)

    def agrees(self, reading: Reading, expected: Tensor, banned: Tensor, sampler: Sampler) -> Bools:
        """Return where the drawn token is among the guide's likeliest."""
        del sampler
        laws = expected.index_fill(-1, banned, float("-inf"))
        drawn = torch.from_numpy(reading.tokens[: len(laws)]).to(laws.device).unsqueeze(-1)
        own, best = laws.gather(-1, drawn), laws.topk(min(self.top_k, laws.shape[-1]), dim=-1).values
        near = (own - best[:, :1]).exp() >= self.ratio
        agrees: Bools = ((own >= best[:, -1:]) & near).squeeze(-1).cpu().numpy()
        return agrees
