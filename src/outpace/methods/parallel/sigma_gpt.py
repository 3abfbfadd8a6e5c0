"""Write bursts of places, each cut at its first rejection.

Paper: Pannatier, Courdier, Fleuret (2024), arXiv 2404.09562 (sigma-GPT).
Guarantee: approximate: nothing is drawn for what was rejected, so a place's law leans towards what the drafts and the
    joint density agree on. A burst of one (`most=1`) has the law of drawing place after place.
Cost: two forwards a burst, which writes one place at least.
Differences: one order per text, where the paper tests several orders of a burst and keeps the one that accepts most;
    what stands behind an end token is written too, and dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.parallel.ordered import OrderedMethod

__all__ = ["SigmaGpt"]


@dataclass(frozen=True)
class SigmaGpt(OrderedMethod):
    """Bursts by rejection."""

    name: ClassVar[str] = "sigma-gpt"
    family: ClassVar[str] = "parallel"
    summary: ClassVar[str] = "Writes bursts of places of an any-order model, up to the first draft that is rejected."
    paper: ClassVar[Paper] = Paper(
        "σ-GPTs: A New Approach to Autoregressive Models",  # noqa: RUF001
        "Pannatier, Courdier, Fleuret",
        2024,
        "2404.09562",
        50,
        "Several orders per burst.",
        'outpace generate "Once upon a time" --model runs/stories-any-order --method sigma-gpt --json',
    )
    redraws: ClassVar[bool] = False
