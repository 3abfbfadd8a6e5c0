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
from typing import ClassVar

from outpace.canvas.background import frequencies
from outpace.canvas.rule_position import Position
from outpace.errors import ConfigError
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import CanvasMethod, CanvasState
from outpace.types import Context

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

    weight: float = 0.25
    alpha: float = 10.0
    background: str = "auto"
    per_step: int = 1

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.weight < float("inf"):
            raise ConfigError(f"weight is {self.weight}.", "It must be 0 (all places alike) or more.")
        if self.alpha <= 0:
            raise ConfigError(f"alpha is {self.alpha}.", "It must be above 0.")
        if self.per_step < 1:
            raise ConfigError(f"per_step is {self.per_step}.", "per_step must be 1 or more.")

    @property
    def rule(self) -> Position:
        """Early and informative places."""
        return Position(self.weight, self.alpha, self.per_step)

    def start(self, context: Context) -> CanvasState:
        """Return the rows' canvases.

        Raises:
            ConfigError: as `CanvasMethod.start`; a background of another vocabulary, or none for this tokenizer.
        """
        state = super().start(context)
        size = context.target.capabilities.vocab_size
        known = frequencies(self.background, context.tokenizers.get("target"), size)
        return replace(state, canvases=[replace(row, memo=known) for row in state.canvases])
