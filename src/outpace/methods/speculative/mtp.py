"""The multi-token modules of the target's own files draft; the target checks.

Paper: DeepSeek-AI (2024), arXiv 2412.19437, section 2.2.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per drafted token one layer and the output matrix; a cache of one
    layer per module.
Differences: any number of steps is drafted, the modules taking turns; trees over their laws; several rows at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import Headed

__all__ = ["Mtp"]


@dataclass(frozen=True)
class Mtp(Headed):
    """Multi-token modules; settings as of `Headed`. draft "auto" = those in the target's own files."""

    name: ClassVar[str] = "mtp"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "Multi-token modules, as a rule in the target's own files, draft; the target checks."
    paper: ClassVar[Paper] = Paper(
        "DeepSeek-V3 Technical Report",
        "DeepSeek-AI",
        2024,
        "2412.19437",
        left_out="Training the target together with its modules.",
    )
