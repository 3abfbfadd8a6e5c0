"""Experts in the drafter's layer guess apart, so that siblings differ; the last levels come from one pass.

Paper: Huang et al. (2025), arXiv 2502.06282, Jakiro.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step one pass of a layer with experts for each level but the last
    ones; each expert's law is a product with the output matrix.
Differences: drafts are coupled to the target's noise; the tree is the best of its size under the mixture of the
    experts' laws, where the paper takes each sibling from one expert by rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import HeadedTree

__all__ = ["Jakiro"]


@dataclass(frozen=True)
class Jakiro(HeadedTree):
    """Jakiro; settings as of `HeadedTree`."""

    name: ClassVar[str] = "jakiro"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "Experts in a feature drafter guess apart, so that siblings differ; a tree is checked."
    paper: ClassVar[Paper] = Paper(
        "Jakiro: Boosting Speculative Decoding with Decoupled Multi-Head via MoE",
        "Huang et al.",
        2025,
        "2502.06282",
        315,
        left_out="Siblings by the rank of their expert: a mixture's law ranks them here.",
    )
