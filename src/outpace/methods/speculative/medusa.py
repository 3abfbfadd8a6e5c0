"""Independent heads on the target's last hidden state draft; a tree over their laws is checked.

Paper: Cai et al. (2024), arXiv 2401.10774, Medusa (sections 2.1 and 2.3.3).
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token; per step one pass of the heads over one state; the heads' weights.
Differences: drafts are coupled to the target's noise; the tree is the best of its size under the heads' laws, made anew
    in every step, or a fixed one (`branches`); heads may share the target's output matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.headed import Headed

__all__ = ["Medusa"]


@dataclass(frozen=True)
class Medusa(Headed):
    """Medusa; settings as of `Headed`."""

    name: ClassVar[str] = "medusa"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "Independent heads on the target's last hidden state draft; the target checks."
    paper: ClassVar[Paper] = Paper(
        "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads",
        "Cai et al.",
        2024,
        "2401.10774",
        left_out="Training the target with the heads (Medusa-2), and typical acceptance (the method `typical`).",
    )
