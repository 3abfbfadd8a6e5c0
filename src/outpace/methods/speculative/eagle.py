"""One decoder layer goes on from the target's features and tokens; its best tree is checked.

Paper: Li et al. (2024), arXiv 2401.15077, EAGLE (section 3), and arXiv 2406.16858, EAGLE-2 (section 4).
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step one pass of a layer for each level; the layer's weights, and
    a cache for one layer.
Differences: drafts are coupled to the target's noise; the tree is the best of its size under the drafter's laws
    (EAGLE-2's, without its limit on the nodes of a level), or a fixed one (`branches`, as EAGLE-1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import HeadedTree

__all__ = ["Eagle"]


@dataclass(frozen=True)
class Eagle(HeadedTree):
    """EAGLE and EAGLE-2; settings as of `Headed`."""

    name: ClassVar[str] = "eagle"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "One layer goes on from the target's last hidden states; the target checks its tree."
    paper: ClassVar[Paper] = Paper(
        "EAGLE: Speculative Sampling Requires Rethinking Feature Uncertainty",
        "Li et al.",
        2024,
        "2401.15077",
        309,
        left_out="The confidence that EAGLE-2 calibrates trees by is corrected for the drafter's error (`spread`).",
    )
