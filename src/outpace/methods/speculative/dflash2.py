"""A block drafter with convolutions over its places and a selector among each place's tokens; the target checks.

Paper: none that is known here; the form is that of DFlash2's published drafters.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step one pass of the drafter over its block and the features of
    the new tokens, and a small product per draft; the drafter's weights, and a cache of its features.
Differences: drafts are coupled to the target's noise; the original walks greedily from the anchor, here trees of every
    shape go over the selector's scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import Headed
from outpace.setting import setting

__all__ = ["DFlash2"]


@dataclass(frozen=True)
class DFlash2(Headed):
    """DFlash2; settings as of `Headed`."""

    draft_len: int = setting(8, least=1)

    name: ClassVar[str] = "dflash2"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "A block is drafted in one pass, and a selector joins its places; the target checks."
    paper: ClassVar[Paper] = Paper("DFlash2", "", 2026, "")
