"""Give the places that a step leaves open what it believed of them, on a model that was trained to read that.

Paper: Hu et al. (2026), arXiv 2601.22954 (RCD). The mask of an open place becomes (1 - a) mask + a (expected
    embedding), a being `weight` times the entropy of the last step's law over log V: what is known least is told most.
Guarantee: approximate. weight=0 is masked-diffusion, token for token, on the same model.
Cost: one forward per step, and the embeddings of `candidates` tokens per open place.
Differences: built from the abstract; the expected embedding is that of the `candidates` likeliest tokens; nothing is
    told across the ends of blocks; in training a frozen parent tells (the first stage is the parent), in decoding
    the model itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from outpace.canvas import Rule
from outpace.canvas.rules.lrd import Refined, residual
from outpace.methods.base import Paper
from outpace.methods.diffusion.ranked import RankedCanvas
from outpace.methods.diffusion.soft_masks import SoftMasks
from outpace.setting import setting

__all__ = ["ResidualContext"]


@dataclass(frozen=True)
class ResidualContext(SoftMasks, RankedCanvas):
    """Residual context diffusion.

    Attributes:
        weight: of the residuals; 0 = plain decoding, 1 = as trained.
        candidates: tokens of a residual at most, the likeliest; trained with 32.

    Raises:
        ConfigError: a setting outside its range.
    """

    weight: float = setting(1.0, least=0, most=1)
    candidates: int = setting(32, least=1)

    dial: ClassVar[str] = "weight"
    name: ClassVar[str] = "rcd"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Tells open positions what the last step believed; needs a masked model trained for it."
    paper: ClassVar[Paper] = Paper(
        "Residual Context Diffusion Language Models",
        "Hu et al.",
        2026,
        "2601.22954",
        305,
    )

    @property
    def rule(self) -> Rule:
        """The best-ranked places, with what is believed of the others remembered."""
        ranked = super().rule
        return Refined(ranked, rounds=0, settle=0.0) if self.weight else ranked

    def mixed(self, laws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the share of the expected embedding, its tokens and their weights."""
        return residual(laws, self.weight, self.candidates)
