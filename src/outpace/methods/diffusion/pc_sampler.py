"""Write what is both early and informative: confidence weighted by place, and by how rare a token is.

Paper: Huang et al. (2025), arXiv 2508.13021 (PC-Sampler). A place i of the generation is ranked by
    exp(-weight * i) * min(-p log f(x), alpha): the weight guides the path from left to right, and the frequency f of
    the token in a background text keeps words that are likely anywhere from being written first.
Guarantee: approximate. With weight 0 and no background it is plain confidence decoding, token for token.
Cost: one forward per `per_step` tokens, over what the cache does not hold.
Differences: scores are compared by their logarithms, since the weight underflows on long texts; the background is a
    file of token counts, shipped for the tokenizer of the zoo's story models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from outpace.canvas import Parts
from outpace.canvas.background import frequencies
from outpace.canvas.rules.position import Position
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import CanvasMethod
from outpace.methods.setting import setting
from outpace.types import Capabilities

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["PcSampler"]


@dataclass(frozen=True)
class PcSampler(CanvasMethod):
    """Position-aware, calibrated confidence.

    Attributes:
        weight: the paper's lambda, how strongly early places are preferred; 0 = not at all.
        alpha: what calibrated confidence is cut to, nats.
        background: "auto" = the shipped counts, for the zoo's tokenizer (and none for a model without tokenizer);
            "none" = no calibration; or a file of counts, as `python -m outpace.train.background` makes it.
        per_step: places written per step.

    Raises:
        ConfigError: a number outside its range.
    """

    weight: float = setting(0.25, least=0, below=float("inf"))
    alpha: float = setting(10.0, above=0)
    background: str = "auto"
    per_step: int = setting(1, least=1)

    name: ClassVar[str] = "pc-sampler"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Unmasks early and informative positions first: confidence weighted by place and rarity."
    paper: ClassVar[Paper] = Paper(
        "PC-Sampler: Position-Aware Calibration of Decoding Bias in Masked Diffusion Models",
        "Huang et al.",
        2025,
        "2508.13021",
        20,
    )

    @property
    def rule(self) -> Position:
        """Early and informative places."""
        return Position(self.weight, self.alpha, self.per_step)

    def parts(self, offered: Capabilities, tokenizer: Tokenizer | None) -> Parts:
        """Return the parts, the rule with its background.

        Raises:
            ConfigError: as `CanvasMethod.parts`; a background of another vocabulary, or none for this tokenizer.
        """
        parts = super().parts(offered, tokenizer)
        known = frequencies(self.background, tokenizer, offered.vocab_size)
        return replace(parts, rule=replace(self.rule, background=known))
