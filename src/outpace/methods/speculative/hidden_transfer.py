"""Pseudo states of the next places, made by one matrix each, pass the target's last layers; a tree is checked.

Paper: Wu et al. (2024), arXiv 2404.12022, Hidden Transfer (section 3).
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token, and per step one of its last layers over the places ahead; no extra
    memory, since the pseudo states use the scratch slots of the target's own cache.
Differences: the pseudo states pass in a forward of their own instead of beside every node of the check
    (`outpace.heads.hidden_transfer`); all enter one layer; drafts are coupled to the target's noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import Headed
from outpace.types import Needs

__all__ = ["HiddenTransfer"]


@dataclass(frozen=True)
class HiddenTransfer(Headed):
    """Hidden transfer; settings as of `Headed`."""

    name: ClassVar[str] = "hidden-transfer"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "Pseudo states of the next places pass the target's last layers; the target checks."
    paper: ClassVar[Paper] = Paper(
        "Parallel Decoding via Hidden Transfer for Lossless Large Language Model Acceleration",
        "Wu et al.",
        2024,
        "2404.12022",
        123,
        "A layer of its own for each place, and pseudo states of every tree node in the check.",
    )

    @property
    def needs(self) -> Needs:
        """As of `Headed`, and a target whose layers can be skipped."""
        return replace(super().needs, has_skip=True)
