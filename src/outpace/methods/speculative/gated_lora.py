"""Masks with factors of their own predict ahead in the target's forward; a small sampler chooses from them.

Paper: Samragh et al. (2025), arXiv 2507.11851, Your LLM Knows the Future: gated LoRA, a sampler head, and linear or
    quadratic decoding.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token, over the drafts and `most` masks beside them; per drafted token one
    pass of the sampler; the factors' weights, read at masks. The target's matrices have to be at hand (--no-compile).
Differences: drafts are coupled to the target's noise; the masks of a quadratic step go where the walk is likely to end.
    Rows that share a run with those of other methods are forwarded without the factors, and draft worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.probed import Probed

__all__ = ["GatedLora"]


@dataclass(frozen=True)
class GatedLora(Probed):
    """Several tokens by gated LoRA; settings as of `Probed` (is_linear: the paper's linear decoding)."""

    name: ClassVar[str] = "gated-lora"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = (
        "Masks with factors of their own predict ahead in the forward that checks; a sampler chooses."
    )
    paper: ClassVar[Paper] = Paper(
        "Your LLM Knows the Future: Uncovering Its Multi-Token Prediction Potential",
        "Samragh et al.",
        2025,
        "2507.11851",
        286,
    )
