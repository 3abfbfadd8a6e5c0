"""Independent heads draft, a small language model rescores what fits together, and the target checks.

Paper: Kim et al. (2024), arXiv 2404.09221, Exploring and Improving Drafts in Blockwise Parallel Decoding (section 5).
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step one pass of the heads over one state, and per level one of
    the small model and of the output matrix over the level's nodes.
Differences: paths are chosen by the tree builders of all drafters (`budget` best nodes, or a chain) instead of a search
    over whole paths; drafts are coupled to the target's noise; the small model is trained with the heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import Headed

__all__ = ["Refined"]


@dataclass(frozen=True)
class Refined(Headed):
    """Refined blockwise drafts; settings as of `Headed`."""

    name: ClassVar[str] = "refined"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "Independent heads draft, a small model rescores their lattice; the target checks."
    paper: ClassVar[Paper] = Paper(
        "Towards Fast Inference: Exploring and Improving Blockwise Parallel Drafts",
        "Kim et al.",
        2024,
        "2404.09221",
        306,
        "Rescoring by n-gram counts.",
    )
