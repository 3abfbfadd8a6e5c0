"""Decode step by step until the model is sure of all that is left, then write it at once.

Paper: Li et al. (2025), arXiv 2508.19982 (Prophet), sections 4.1 and 4.2: the mean gap between the two greatest logits
    against a threshold that falls in three stages as decoding goes on.
Guarantee: approximate; what is committed together ignores itself. With infinite gaps it is the rule below it, exactly.
Cost: one forward per token until the commit; `region=canvas` reads every undecided place in each forward.
Differences: the paper measures the gap over the answer, whose place it knows from an injected template; here the
    region is the block in work, or everything undecided, so no template is needed and any text will do. Progress is
    the decided share of the region, not the share of a fixed number of steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from outpace.canvas import ORDERS, Canvas, Ranked, Schedule
from outpace.canvas.reach import Reach
from outpace.canvas.rules.prophet import EarlyCommit
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import CanvasMethod
from outpace.methods.setting import setting

__all__ = ["Prophet"]


@dataclass(frozen=True)
class Prophet(CanvasMethod):
    """One token per step, until the mean gap of the two best logits over the region commits the rest.

    Attributes:
        early, middle, late: the gap that commits while less than 33%, less than 67% and more of the region is
            decided; inf = never.
        region: "block" (the block in work) or "canvas" (every undecided place that the model sees).
        order: what is written until then, as in masked-diffusion.

    Raises:
        ConfigError: a negative gap, an unknown region or an unknown order.
    """

    early: float = setting(7.5, least=0, note="inf = never")
    middle: float = setting(5.0, least=0, note="inf = never")
    late: float = setting(2.5, least=0, note="inf = never")
    region: str = setting("block", among=("block", "canvas"))
    order: str = setting("confidence", among=ORDERS)

    name: ClassVar[str] = "prophet"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = "Commits the rest of a block once its best tokens lead clearly; needs a masked model."
    paper: ClassVar[Paper] = Paper(
        "Diffusion Language Models Know the Answer Before Decoding",
        "Li et al.",
        2025,
        "2508.19982",
        250,
        "The answer template: the gap is measured over the block or the canvas.",
    )

    @property
    def rule(self) -> EarlyCommit:
        """The order, and when to stop following it."""
        return EarlyCommit(Ranked(self.order), (self.early, self.middle, self.late), self.region == "canvas")

    def schedule(self, canvas: Canvas) -> Schedule:
        """Return fixed blocks, read to the end of the canvas where the gap is measured over it."""
        blocks = super().schedule(canvas)
        # Without a gap to measure nothing beyond the block is read, so that infinite gaps are the baseline.
        may_commit = math.isfinite(min(self.early, self.middle, self.late))
        return Reach(blocks) if self.region == "canvas" and may_commit else blocks
