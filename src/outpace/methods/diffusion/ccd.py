"""Write the places on which the last steps agree, as many at once as they agree on.

Paper: Chen et al. (2025), arXiv 2512.02044 (CCD): the average of the laws that several contexts gave a place stands for
    its marginal law (the trajectory rectification), and the number of places per step follows their consistency
    (CCD-DS). Read: summaries of the paper and the authors' code for Dream, not the full text.
Guarantee: approximate; places written together ignore each other. With history=1 it is plain confidence, one token per
    step.
Cost: no further forward; `history` x `top` laws of memory per row. On stories it costs likelihood: no setting that
    was measured (`outpace.bench.samplers`) saves forwards within 0.1 bits per token of one token per step.
Differences: the buffer begins anew with each block. A place counts as consistent if the same token led in every step
    of the buffer and is the one drawn now; the authors' code compares two steps after five steps of warming up, and
    the paper's entropy bound is left out. Places are judged by the drawn token's average probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.canvas.rules.ccd import Coherent
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import CanvasMethod
from outpace.methods.setting import setting

__all__ = ["CoherentDecoding"]


@dataclass(frozen=True)
class CoherentDecoding(CanvasMethod):
    """Coherent contextual decoding.

    Attributes:
        history: steps that are averaged, the present one included (the paper: 2 for LLaDA, 3 for Dream); 1 = plain.
        top: places that each step keeps, and so the most that are written at once.
        adaptive: write all consistent places; False = one per step.

    Raises:
        ConfigError: a history or a top below 1.
    """

    history: int = setting(2, least=1)
    top: int = setting(4, least=1)
    adaptive: bool = True

    name: ClassVar[str] = "ccd"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Writes what several steps agree on, as much as they agree on; needs a masked model."
    paper: ClassVar[Paper] = Paper(
        "Beyond Confidence: Adaptive and Coherent Decoding for Diffusion Language Models",
        "Chen et al.",
        2025,
        "2512.02044",
        258,
        "The entropy bound on the number of places; agreement of the whole buffer stands in.",
    )

    @property
    def rule(self) -> Coherent:
        """The buffer's rule."""
        return Coherent(self.history, self.top, self.adaptive)
