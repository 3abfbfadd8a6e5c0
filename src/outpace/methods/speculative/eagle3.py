"""A layer over states tapped at several depths of the target goes on from its own outputs; its best tree is checked.

Paper: Li et al. (2025), arXiv 2503.01840, EAGLE-3 (section 3); EAGLE-3.1 by the flags in the drafter's files.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step one pass of the drafter for each level; its weights, its
    output matrix among them, and a cache for its layers.
Differences: drafts are coupled to the target's noise; the tree is the best of its size under the drafter's laws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import HeadedTree

__all__ = ["Eagle3"]


@dataclass(frozen=True)
class Eagle3(HeadedTree):
    """EAGLE-3; settings as of `HeadedTree`."""

    name: ClassVar[str] = "eagle3"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "A layer over states of several depths, trained on its own outputs; a tree is checked."
    paper: ClassVar[Paper] = Paper(
        "EAGLE-3: Scaling up Inference Acceleration of Large Language Models via Training-Time Test",
        "Li et al.",
        2025,
        "2503.01840",
        left_out="Its scaling to more training data.",
    )
