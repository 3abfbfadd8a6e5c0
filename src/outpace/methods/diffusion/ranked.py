"""What methods share that write the best-ranked places, a fixed number per step."""

from __future__ import annotations

from dataclasses import dataclass

from outpace.canvas import ORDERS, Ranked, Rule
from outpace.canvas.rules.spread import Spread
from outpace.errors import ConfigError
from outpace.methods.diffusion.base import CanvasMethod
from outpace.methods.setting import setting

__all__ = ["RankedCanvas"]


@dataclass(frozen=True)
class RankedCanvas(CanvasMethod):
    """The best-ranked places, a fixed number per step.

    Attributes:
        order: what is written first: "confidence", "margin" (of the two likeliest tokens), "entropy" (least first),
            "random" or "left".
        per_step: places written per step.
        steps: in place of `per_step`: steps for the whole generation, shared out over its blocks; 0 = by `per_step`.
        order_temp: above 0, places are drawn by softmax(score / order_temp) instead of taken from the best down.

    Raises:
        ConfigError: a setting outside its range, or both steps and per_step.
    """

    order: str = setting("confidence", among=ORDERS)
    per_step: int = setting(1, least=1)
    steps: int = setting(0, least=0, note="0 goes by per_step")
    order_temp: float = setting(0.0, least=0, below=float("inf"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps and self.per_step > 1:
            raise ConfigError(
                f"steps is {self.steps} and per_step {self.per_step}.",
                "Each decides how many places a step writes: give one.",
            )

    @property
    def rule(self) -> Rule:
        """The best-ranked places."""
        ranked = Ranked(self.order, self.per_step, order_temp=self.order_temp)
        return Spread(ranked, self.steps) if self.steps else ranked
