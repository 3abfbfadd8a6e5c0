"""Trained prompt tokens behind the drafts guess ahead in the very forward that checks these.

Paper: Chen et al. (2024), arXiv 2405.18628, Parallel Prompt Decoding (sections 3 and 4).
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token, over the drafts and `most` prompt tokens beside them; no drafting
    forward; a few embeddings of weights.
Differences: drafts are coupled to the target's noise. Where prompt tokens hang, and how many, follows the drafted tree
    of the step (the chance that the walk ends at each node), where the paper computes one tree per state beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.probed import Probed
from outpace.setting import setting

__all__ = ["Ppd"]


@dataclass(frozen=True)
class Ppd(Probed):
    """Parallel prompt decoding; settings as of `Probed`."""

    budget: int = setting(12, least=0)

    name: ClassVar[str] = "ppd"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "Trained prompt tokens guess ahead in the forward that checks a dynamic sparse tree."
    paper: ClassVar[Paper] = Paper(
        "Hardware-Aware Parallel Prompt Decoding for Memory-Efficient Acceleration of LLM Inference",
        "Chen et al.",
        2024,
        "2405.18628",
        232,
        "Measuring the accelerator for the size of the tree.",
    )
