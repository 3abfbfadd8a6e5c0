"""A small model attends to the target's projected states of all text that the target has read; its tree is checked.

Paper: Nair et al. (2024), arXiv 2402.08644, Tandem Transformers.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step one pass of the small model for each level; its weights, and
    a cache for its layers.
Differences: drafts are coupled to the target's noise; the tree is the best of its size under the drafter's laws
    (`budget=0` = a chain, as in the paper). The small model shares the target's embeddings and output matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import HeadedTree

__all__ = ["Tandem"]


@dataclass(frozen=True)
class Tandem(HeadedTree):
    """Tandem Transformers; settings as of `HeadedTree`."""

    name: ClassVar[str] = "tandem"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "A small model that attends to the target's projected states drafts; the target checks."
    paper: ClassVar[Paper] = Paper(
        "Tandem Transformers for Inference Efficient LLMs",
        "Nair et al.",
        2024,
        "2402.08644",
        160,
        left_out="Training the target with the small model; text that the small model writes unchecked.",
    )
