"""Let a small trained filter decide which places are written: those of which it believes that they will not change.

Paper: Bao et al. (2025), arXiv 2509.25188 (Learn2PD). The filter is trained on texts that the model wrote one token per
    step: was what a step drew at a place what the text holds in the end? End-of-text prediction needs nothing here:
    the first end token that is written cuts the canvas of every method.
Guarantee: approximate. Without a filter it is threshold decoding, token for token.
Cost: one forward per step, over what the cache does not hold; the filter costs microseconds.
Differences: the paper's filter reads the confidences of a block of one length; this one reads seven numbers of each
    place and so fits any block. The surest place is always written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from outpace.canvas import Parts
from outpace.canvas.rules.filtered import Filtered, read_filter
from outpace.errors import CapabilityError
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import CanvasMethod
from outpace.setting import setting
from outpace.types import Capabilities

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["Learn2Pd"]


@dataclass(frozen=True)
class Learn2Pd(CanvasMethod):
    """Parallel decoding by a learned filter.

    Attributes:
        threshold: places whose score reaches it are written together, in (0, 1].
        filter: a file that `python -m outpace.train.filter` wrote; "none" = the confidence is the score.

    Raises:
        ConfigError: a threshold outside (0, 1].
    """

    threshold: float = setting(0.9, above=0, most=1)
    filter: str = "none"

    name: ClassVar[str] = "learn2pd"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Unmasks the positions that a small trained filter believes to be settled."
    paper: ClassVar[Paper] = Paper(
        "Learning to Parallel: Accelerating Diffusion Large Language Models via Adaptive Parallel Decoding",
        "Bao et al.",
        2025,
        "2509.25188",
        148,
    )

    @property
    def rule(self) -> Filtered:
        """The places that reach the threshold."""
        return Filtered(self.threshold)

    def parts(self, offered: Capabilities, tokenizer: Tokenizer | None) -> Parts:
        """Return the parts, the rule with its filter.

        Raises:
            ConfigError: as `CanvasMethod.parts`; the file is no filter.
            CapabilityError: the filter was trained with a model of another vocabulary.
        """
        parts = super().parts(offered, tokenizer)
        if self.filter == "none":
            return parts
        learned = read_filter(self.filter)
        if learned.vocab_size != offered.vocab_size:
            raise CapabilityError(
                f"The filter {self.filter} was trained with {learned.vocab_size} tokens, the model has "
                f"{offered.vocab_size}.",
                "Train one for this model with python -m outpace.train.filter.",
            )
        return replace(parts, rule=replace(self.rule, learned=learned))
