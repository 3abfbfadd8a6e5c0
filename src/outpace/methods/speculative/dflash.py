"""A block drafter: one pass over places ahead, which see the target's states of the whole text; the target checks.

Paper: Chen et al. (2026), arXiv 2602.06036, DFlash.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step one pass of the drafter over its block and the features of
    the new tokens; the drafter's weights, and a cache of its features.
Differences: drafts are coupled to the target's noise. The paper drafts one chain; here trees of every shape are drafted
    over the same pass. The paper's drafter has five layers over five taps; how many is a setting of its training. By
    default the anchor's place drafts too, and the last feature is added to every place, which suits one layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import Headed
from outpace.setting import setting

__all__ = ["DFlash"]


@dataclass(frozen=True)
class DFlash(Headed):
    """DFlash; settings as of `Headed`."""

    draft_len: int = setting(8, least=1)

    name: ClassVar[str] = "dflash"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "A block of places that see the target's states is drafted in one pass; the target checks."
    paper: ClassVar[Paper] = Paper(
        "DFlash: Block Diffusion for Flash Speculative Decoding",
        "Chen et al.",
        2026,
        "2602.06036",
        282,
    )
