"""A layer for the last three tokens, and attention over the target's states of the text, draft; a tree is checked.

Paper: Zeng et al. (2024), arXiv 2402.15758, Chimera (section 3).
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step and level one layer over the paths of the level's nodes; keys
    and values of one layer for the text.
Differences: drafts are coupled to the target's noise; the tree is the best of its size under the heads' laws; paths
    are drafted token by token, where the paper has several output heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import Headed

__all__ = ["Chimera"]


@dataclass(frozen=True)
class Chimera(Headed):
    """Chimera; settings as of `Headed`."""

    name: ClassVar[str] = "chimera"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "A trigram layer and attention over the target's states draft; the target checks."
    paper: ClassVar[Paper] = Paper(
        "Chimera: A Lossless Decoding Method for Accelerating Large Language Models Inference by Fusing all Tokens",
        "Zeng et al.",
        2024,
        "2402.15758",
        213,
        "Several output heads that draft more than one token per pass.",
    )
