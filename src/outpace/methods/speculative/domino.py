"""A block drafter whose places hear the drafted path through a recurrent state; the target checks.

Paper: Huang et al. (2026), arXiv 2605.29707, Domino.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step one pass of the drafter over its block and the features of
    the new tokens, and one step of its GRU and its output per draft; the drafter's weights, a cache of its features.
Differences: drafts are coupled to the target's noise; trees of every shape go over the same pass, each node with the
    state of its own path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import Headed
from outpace.setting import setting

__all__ = ["Domino"]


@dataclass(frozen=True)
class Domino(Headed):
    """Domino; settings as of `Headed`."""

    draft_len: int = setting(8, least=1)

    name: ClassVar[str] = "domino"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "A block is drafted in one pass, a recurrent state carries the path; the target checks."
    paper: ClassVar[Paper] = Paper(
        "Domino: Decoupling Causal Modeling from Autoregressive Drafting in Speculative Decoding",
        "Huang et al.",
        2026,
        "2605.29707",
        left_out="The curriculum of its training, which teaches the body's own laws first.",
    )
