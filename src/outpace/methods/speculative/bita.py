"""Prompt and mask embeddings let a frozen target draft and check in one forward over a tree.

Paper: Lin et al. (2024), arXiv 2401.12522, BiTA: Bi-Directional Tuning for Lossless Acceleration.
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection.
Cost: at most 1 target forward per emitted token, over the drafts and `most` soft tokens beside them; no drafting
    forward; a few embeddings of weights.
Differences: prompt tokens stand before the masks of each node, in the window; the paper's stand before the text, where
    a cache would have to hold them. Drafts are coupled to the target's noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.probed import Probed
from outpace.setting import setting

__all__ = ["Bita"]


@dataclass(frozen=True)
class Bita(Probed):
    """Bi-directional tuning; settings as of `Probed`."""

    branches: tuple[int, ...] = setting((3, 1, 1), least=1)
    most: int = setting(40, least=1)

    name: ClassVar[str] = "bita"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "Prompt and mask embeddings let the frozen target draft and check in one tree forward."
    paper: ClassVar[Paper] = Paper(
        "BiTA: Bi-Directional Tuning for Lossless Acceleration in Large Language Models",
        "Lin et al.",
        2024,
        "2401.12522",
        287,
    )
