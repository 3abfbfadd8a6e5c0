"""Heads that look at each other, on adapted states of the whole text, draft; a tree over their laws is checked.

Paper: Li et al. (2024), arXiv 2406.13170, Amphista (section 3).
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step two layers over what the last step wrote, and one pass of all
    heads; keys and values of two layers for the text.
Differences: drafts are coupled to the target's noise; the tree is the best of its size under the heads' laws; heads
    share the target's output matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import Headed

__all__ = ["Amphista"]


@dataclass(frozen=True)
class Amphista(Headed):
    """Amphista; settings as of `Headed`."""

    name: ClassVar[str] = "amphista"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "Draft heads that see each other, on adapted states of the text; the target checks."
    paper: ClassVar[Paper] = Paper(
        "Amphista: Accelerate LLM Inference with Bi-directional Multiple Drafting Heads in a Non-autoregressive Style",
        "Li et al.",
        2024,
        "2406.13170",
        0,
        "Output matrices of the heads' own.",
    )
