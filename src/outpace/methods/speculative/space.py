"""A target tuned with mask tokens fills them while it checks what filled them before, in one call.

Paper: Yi et al. (2024), arXiv 2402.11809, Smart Parallel Auto-Correct Decoding (SPACE).
Guarantee: exact with accept_rule=match (default), distribution with accept_rule=rejection; the text is that of plain
    decoding with the same tuned weights.
Cost: at most 1 target forward per emitted token, over the drafts and `most` masks beside them; no drafting forward; an
    embedding of weights.
Differences: the tuned weights are the target's with an adapter, which `outpace train drafter` writes beside the mask
    (load it with --adapter). A target whose files name a mask of its own needs no drafter: of a model trained to fill
    sets of a block, this is the exact form (SDLM's self-speculative decoding, Liu et al., 2025, arXiv 2509.24007), and
    of one that was taught blocks in both directions as well (the quadratic mode of Nemotron-Labs-Diffusion, Fu et al.,
    2026, arXiv 2607.05722). Drafts are coupled to the target's noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.speculative.probed import Probed

__all__ = ["Space"]


@dataclass(frozen=True)
class Space(Probed):
    """Smart parallel auto-correct decoding; settings as of `Probed`."""

    name: ClassVar[str] = "space"
    family: ClassVar[str] = "trained drafters"
    summary: ClassVar[str] = "A target tuned with masks fills them while it checks what filled them before."
    paper: ClassVar[Paper] = Paper(
        "Generation Meets Verification: Accelerating Large Language Model Inference with Smart Parallel Auto-Correct"
        " Decoding",
        "Yi et al.",
        2024,
        "2402.11809",
        84,
    )
