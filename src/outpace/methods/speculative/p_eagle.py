"""One pass over mask tokens behind the text tells all places ahead; the best tree over their laws is checked.

Paper: P-EAGLE (2026), arXiv 2602.01469.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; one pass of the drafter per step, whatever the depth.
Differences: drafts are coupled to the target's noise; the paper drafts a chain, here the best tree over the places'
    laws is drafted (`budget=0` = a chain).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import HeadedTree

__all__ = ["PEagle"]


@dataclass(frozen=True)
class PEagle(HeadedTree):
    """P-EAGLE; settings as of `HeadedTree`."""

    name: ClassVar[str] = "p-eagle"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "One pass of a small drafter over mask tokens tells all places ahead; the target checks."
    paper: ClassVar[Paper] = Paper(
        "P-EAGLE: Parallel-Drafting EAGLE with Scalable Training",
        "Hui et al.",
        2026,
        "2602.01469",
        left_out="Leaving out masked places at random while training, and cutting long sequences into parts.",
    )
