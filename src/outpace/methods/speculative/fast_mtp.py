"""One module, trained over several steps as it drafts them, drafts step by step; the target checks.

Paper: Cai et al. (2025), arXiv 2509.18362, FastMTP (sections 3.1 to 3.3).
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per drafted token one layer and the output matrix's drafted rows.
Differences: in training a step sees the text and the steps before it, as in drafting, instead of every place's state of
    the same step; the reduced vocabulary is one for all languages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import Headed

__all__ = ["FastMtp"]


@dataclass(frozen=True)
class FastMtp(Headed):
    """FastMTP; settings as of `Headed`."""

    name: ClassVar[str] = "fastmtp"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "One multi-token module, trained over several steps, drafts; the target checks."
    paper: ClassVar[Paper] = Paper(
        "FastMTP: Accelerating LLM Inference with Enhanced Multi-Token Prediction",
        "Cai, Liang, et al.",
        2025,
        "2509.18362",
        146,
        left_out="A vocabulary chosen by the language of the prompt.",
    )
