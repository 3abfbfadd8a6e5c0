"""Write a text block by block, each from masks, the best-ranked places first.

Paper: Nie et al. (2025), arXiv 2502.09992 (LLaDA), semi-autoregressive sampling with low-confidence re-masking, and
    with random re-masking (`order=random`). The orders by margin and by entropy are those of Dream (Ye et al., 2025,
    arXiv 2508.15487).
Guarantee: approximate. The reference is the same model, rule, block and cache with one token per step, which is what it
    is at its defaults.
Cost: one forward per `per_step` tokens, over what the cache does not hold.
Differences: tokens are drawn with noise keyed by place and visit; an end token ends the canvas behind it, so that
    nothing is computed beyond; `steps` are spread over the canvas, not over each block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.canvas.rules import Ranked
from outpace.errors import ConfigError
from outpace.methods.base import Paper
from outpace.methods.base_canvas import CanvasMethod

__all__ = ["MaskedDiffusion"]

ORDERS = ("confidence", "margin", "entropy", "random", "left")


@dataclass(frozen=True)
class MaskedDiffusion(CanvasMethod):
    """Masked diffusion with a fixed number of tokens per step.

    Attributes:
        order: what is written first: "confidence", "margin" (of the two likeliest tokens), "entropy" (least first),
            "random" or "left".
        per_step: places written per step.

    Raises:
        ConfigError: an unknown order, or a per_step below 1.
    """

    order: str = "confidence"
    per_step: int = 1

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ORDERS:
            raise ConfigError(f"order is {self.order!r}.", f"Use one of {', '.join(ORDERS)}.")
        if self.per_step < 1:
            raise ConfigError(f"per_step is {self.per_step}.", "per_step must be 1 or more.")

    @property
    def rule(self) -> Ranked:
        """The best-ranked places."""
        return Ranked(self.order, self.per_step)
