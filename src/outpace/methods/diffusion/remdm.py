"""Mask written places again, by chance or where they are least sure, so that early mistakes can be mended.

Paper: Wang et al. (2025), arXiv 2503.00307 (ReMDM): in ancestral sampling a written place is masked again with
    probability sigma, and masked ones are written a little sooner, so that every time's share of masks stays the same.
    Strategies "cap", "rescale" and "conf" are theirs. "low" is low-confidence re-masking as in mask-predict
    (Ghazvininejad et al. 2019, arXiv 1904.09324): a full block's least sure places are masked again, once.
Guarantee: approximate. eta = 0 is `mdlm`, and for "low" plain confidence decoding, token for token.
Cost: one forward per time step in which something is written or masked again; a block always ends after its steps.
Differences: time runs within each block. A block that an end token completes is final, although time is left. In "conf"
    eta scales what the authors leave at 1. What the caller gave is never masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.canvas import Rule
from outpace.canvas.rules.ancestral import Ancestral
from outpace.canvas.rules.revise import Revise
from outpace.errors import ConfigError
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import CanvasMethod
from outpace.methods.setting import setting

__all__ = ["ReMdm"]


@dataclass(frozen=True)
class ReMdm(CanvasMethod):
    """Sampling with re-masking.

    Attributes:
        strategy: "cap" (sigma = min(eta, its maximum)), "rescale" (eta times its maximum), "conf" (the same, more on
            places that were less sure when written) or "low" (the share eta of a full block, the least sure, once).
        eta: strength of re-masking, from 0 to 1.
        steps: time steps per block; 0 = as many as the block has places. Not for "low".
        per_step: places written per step; for "low" alone.

    Raises:
        ConfigError: a setting outside its range, or one that the strategy does not have.
    """

    strategy: str = setting("cap", among=("cap", "rescale", "conf", "low"))
    eta: float = setting(0.05, least=0, most=1)
    steps: int = setting(0, least=0, note="0 takes one per place")
    per_step: int = setting(1, least=1)

    name: ClassVar[str] = "remdm"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Masks written positions again, by chance or where least sure, to mend early mistakes."
    paper: ClassVar[Paper] = Paper(
        "Remasking Discrete Diffusion Models with Inference-Time Scaling",
        "Wang et al.",
        2025,
        "2503.00307",
        0,
        "The strategies switch and loop, which turn re-masking on for a part of the time.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps if self.strategy == "low" else self.per_step > 1:
            raise ConfigError(
                f"The strategy {self.strategy!r} has no {'steps' if self.strategy == 'low' else 'per_step'}.",
                "steps belongs to cap, rescale and conf; per_step to low.",
            )

    @property
    def rule(self) -> Rule:
        """Ancestral sampling with re-masking, or confidence decoding with one revision per block."""
        if self.strategy == "low":
            return Revise(self.eta, self.per_step)
        return Ancestral(self.steps, self.eta, self.strategy)
