"""What methods share that write the best-ranked places, a fixed number per step."""

from __future__ import annotations

from dataclasses import dataclass, replace

from outpace.canvas import Rule
from outpace.canvas.rule_spread import Spread, plan_steps
from outpace.canvas.rules import Ranked
from outpace.errors import ConfigError
from outpace.methods.diffusion.base import CanvasMethod, CanvasState
from outpace.types import Context

__all__ = ["ORDERS", "RankedCanvas"]

ORDERS = ("confidence", "margin", "entropy", "random", "left")


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
        ConfigError: an unknown order, a number outside its range, or both steps and per_step.
    """

    order: str = "confidence"
    per_step: int = 1
    steps: int = 0
    order_temp: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ORDERS:
            raise ConfigError(f"order is {self.order!r}.", f"Use one of {', '.join(ORDERS)}.")
        if self.per_step < 1:
            raise ConfigError(f"per_step is {self.per_step}.", "per_step must be 1 or more.")
        if self.steps < 0 or not 0 <= self.order_temp < float("inf"):
            raise ConfigError(f"steps is {self.steps} and order_temp {self.order_temp}.", "Both must be 0 or more.")
        if self.steps and self.per_step > 1:
            raise ConfigError(
                f"steps is {self.steps} and per_step {self.per_step}.",
                "Each decides how many places a step writes: give one.",
            )

    @property
    def rule(self) -> Rule:
        """The best-ranked places."""
        ranked = Ranked(self.order, self.per_step, order_temp=self.order_temp)
        return Spread(ranked) if self.steps else ranked

    def start(self, context: Context) -> CanvasState:
        """Return the rows' canvases.

        Raises:
            ConfigError: as `CanvasMethod.start`; more steps than tokens, or fewer than blocks.
        """
        state = super().start(context)
        if not self.steps:
            return state
        schedule = self.schedule(state.canvas)
        rows = [replace(row, memo=plan_steps(row, state.canvas, schedule, self.steps)) for row in state.canvases]
        return replace(state, canvases=rows)
