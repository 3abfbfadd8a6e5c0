"""Write bursts of places, each cut at its first rejection.

Paper: Pannatier, Courdier, Fleuret (2024), arXiv 2404.09562 (sigma-GPT).
Guarantee: approximate: nothing is drawn for what was rejected, so a place's law leans towards what the drafts and the
    joint density agree on. A burst of one (`most=1`) has the law of drawing place after place.
Cost: two forwards a burst, which writes one place at least; with `orders` the second reads the burst so many times.
Differences: what stands behind an end token is written too, and dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from outpace.methods.base import Paper
from outpace.methods.parallel.ordered import OrderedMethod
from outpace.sampling import Sampler, Stream, uniform
from outpace.setting import setting

__all__ = ["SigmaGpt"]


@dataclass(frozen=True)
class SigmaGpt(OrderedMethod):
    """Bursts by rejection.

    Attributes:
        orders: in which a burst is tested, side by side; the one that accepts most is taken.
    """

    orders: int = setting(1, least=1, most=64)

    name: ClassVar[str] = "sigma-gpt"
    family: ClassVar[str] = "parallel"
    summary: ClassVar[str] = "Writes bursts of places of an any-order model, up to the first draft that is rejected."
    paper: ClassVar[Paper] = Paper(
        "σ-GPTs: A New Approach to Autoregressive Models",  # noqa: RUF001
        "Pannatier, Courdier, Fleuret",
        2024,
        "2404.09562",
        50,
        "",
        'outpace generate "Once upon a time" --model runs/stories-any-order --method sigma-gpt --json',
    )
    redraws: ClassVar[bool] = False

    def _tried(self, sampler: Sampler, count: int, known: int) -> tuple[tuple[int, ...], ...]:
        """Return the order as drawn, and others by chance."""
        keys = sampler.noise(Stream.ORDER, torch.zeros(1, dtype=torch.int64), known)
        ranks = uniform(keys, torch.arange((self.orders - 1) * count))[0].view(self.orders - 1, count)
        return (tuple(range(count)), *map(tuple, ranks.argsort(1).tolist()))
