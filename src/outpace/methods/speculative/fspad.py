"""EAGLE's layer, with features that the tokens choose from and laws apart from its features; its tree is checked.

Paper: Gui et al. (2024), arXiv 2408.15562, FSPAD.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step one pass of a layer for each level; its weights, three
    further matrices for the choice, and one for the alignment.
Differences: drafts are coupled to the target's noise; the tree is the best of its size under the drafter's laws. The
    choice is added to the feature, and begins at nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import HeadedTree

__all__ = ["Fspad"]


@dataclass(frozen=True)
class Fspad(HeadedTree):
    """FSPAD; settings as of `HeadedTree`."""

    name: ClassVar[str] = "fspad"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "A feature drafter whose tokens choose from its features; a tree is checked."
    paper: ClassVar[Paper] = Paper(
        "Boosting Lossless Speculative Decoding via Feature Sampling and Partial Alignment Distillation",
        "Gui et al.",
        2024,
        "2408.15562",
        233,
        left_out="The authors' sizes of the wide space, which the training sets here (sampling).",
    )
