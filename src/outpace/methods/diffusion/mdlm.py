"""Ancestral sampling: in every time step each masked place is written by chance, as the diffusion was defined.

Paper: Sahoo et al. (2024), arXiv 2406.07524. From time t to s a masked place is written with probability (t - s) / t; a
    step that writes nothing reuses the prediction it has; longer text is generated block by block, each after the last.
Guarantee: approximate: places written in one step ignore each other. With ever more steps the law becomes that of one
    token per step in random order.
Cost: one forward per time step in which something is written, at most as many as there are places; the others are free.
Differences: time runs within each block, blocks follow each other without overlap, and the noise of an order is keyed
    by place and time step, so that texts depend on the seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.canvas.rules.ancestral import Ancestral
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import CanvasMethod
from outpace.methods.setting import setting

__all__ = ["Mdlm"]


@dataclass(frozen=True)
class Mdlm(CanvasMethod):
    """Ancestral sampling with prediction caching, semi-autoregressive over blocks.

    Attributes:
        steps: time steps per block, as many as wanted; 0 = as many as the block has places.

    Raises:
        ConfigError: a negative number of steps.
    """

    steps: int = setting(0, least=0, note="0 takes one per place")

    name: ClassVar[str] = "mdlm"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Unmasks each position at a random time; steps in which nothing happens cost no forward."
    paper: ClassVar[Paper] = Paper(
        "Simple and Effective Masked Diffusion Language Models",
        "Sahoo et al.",
        2024,
        "2406.07524",
        333,
    )

    @property
    def rule(self) -> Ancestral:
        """Every place at its time."""
        return Ancestral(self.steps)
