"""A pass of the drafter tells several tokens at once; a tree grows over several passes and is checked.

Paper: Gao et al. (2024), arXiv 2412.12639, Falcon.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step one pass of a layer for every `block` levels.
Differences: drafts are coupled to the target's noise; the tree is the best of its size under the drafter's laws, where
    the paper's is designed by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import HeadedTree

__all__ = ["Falcon"]


@dataclass(frozen=True)
class Falcon(HeadedTree):
    """Falcon; settings as of `HeadedTree`."""

    name: ClassVar[str] = "falcon"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "A feature drafter tells several tokens a pass, over several passes; a tree is checked."
    paper: ClassVar[Paper] = Paper(
        "Falcon: Faster and Parallel Inference of Large Language Models through Enhanced Semi-Autoregressive "
        "Drafting and Custom-Designed Decoding Tree",
        "Gao et al.",
        2024,
        "2412.12639",
        216,
        left_out="The recurrent layers before attention; drafted tokens as inputs in training (here the text's).",
    )
