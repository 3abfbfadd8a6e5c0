"""Heads tell every second place ahead, and those of earlier steps the places between; the target checks.

Paper: Liu et al. (2025), arXiv 2505.17505, L-MTP (sections 3.1 and 3.2).
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step one pass of the heads over the last `leap` states.
Differences: the target's weights rest, and its own output matrix serves every head; the leap is a setting of the heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import Headed

__all__ = ["LMtp"]


@dataclass(frozen=True)
class LMtp(Headed):
    """L-MTP; settings as of `Headed`."""

    name: ClassVar[str] = "l-mtp"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "Heads that leap over places, filled from earlier steps, draft; the target checks."
    paper: ClassVar[Paper] = Paper(
        "L-MTP: Leap Multi-Token Prediction Beyond Adjacent Context for Large Language Models",
        "Liu, Xia, et al.",
        2025,
        "2505.17505",
        117,
        left_out="Training the target together with its heads.",
    )
