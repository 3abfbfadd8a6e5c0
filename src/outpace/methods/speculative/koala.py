"""Heads of several blocks that were trained against a judge draft; a tree over their laws is checked.

Paper: Zhang et al. (2024), arXiv 2408.08146, KOALA (section 3).
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step one pass of the heads over one state, `blocks` times a Medusa
    head's weights.
Differences: drafts are coupled to the target's noise; the tree is the best of its size under the heads' laws; the
    judge of the training sees states, not laws (`outpace.heads.koala`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import Headed

__all__ = ["Koala"]


@dataclass(frozen=True)
class Koala(Headed):
    """KOALA's heads; settings as of `Headed`."""

    name: ClassVar[str] = "koala"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "Several blocks per head, trained against a judge; the target checks."
    paper: ClassVar[Paper] = Paper(
        "KOALA: Enhancing Speculative Decoding for LLM via Multi-Layer Draft Heads with Adversarial Learning",
        "Zhang et al.",
        2024,
        "2408.08146",
        21,
        "Its form of EAGLE's head: several layers in a drafter that writes token by token.",
    )
