"""Write a text block by block, each from masks, the best-ranked places first.

Paper: Nie et al. (2025), arXiv 2502.09992 (LLaDA), semi-autoregressive sampling with low-confidence re-masking, and
    with random re-masking (`order=random`). The orders by margin and by entropy are those of Dream (Ye et al., 2025,
    arXiv 2508.15487), and so is drawing places by chance (`order_temp`, their alg_temp).
Guarantee: approximate. The reference is the same model, rule, block and cache with one token per step, which is what it
    is at its defaults.
Cost: one forward per `per_step` tokens, or `steps` forwards in all, over what the cache does not hold.
Differences: tokens are drawn with noise keyed by place and visit; an end token ends the canvas behind it, so that
    nothing is computed beyond and fewer steps are taken; `steps` need be no multiple of the number of blocks: the first
    blocks get the remainder, as the first steps of a block get that of its places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.base import Paper
from outpace.methods.diffusion.ranked import RankedCanvas

__all__ = ["MaskedDiffusion"]


@dataclass(frozen=True)
class MaskedDiffusion(RankedCanvas):
    """Masked diffusion with a fixed number of tokens per step."""

    name: ClassVar[str] = "masked-diffusion"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Unmasks a block of positions, the surest first; needs a masked model."
    paper: ClassVar[Paper] = Paper(
        "Large Language Diffusion Models",
        "Nie et al.",
        2025,
        "2502.09992",
        301,
        "Classifier-free guidance.",
    )
