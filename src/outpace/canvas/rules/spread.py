"""A fixed number of steps: the places of each block are spread over the block's steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from outpace.canvas.blocks import Schedule
from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, Canvas, CanvasRow, Ids
from outpace.canvas.rules.paced import share
from outpace.canvas.rules.ranked import Ranked
from outpace.canvas.rules.rule import Rule
from outpace.canvas.table import RowTable
from outpace.errors import ConfigError

__all__ = ["Spread", "plan_steps"]


@dataclass(frozen=True, slots=True)
class Spread(Rule):
    """Write the best-ranked places, as many per step as finish the block in its steps, the greater numbers first.

    The memo holds `plan_steps`.

    Attributes:
        ranked: how places are ranked; its `per_step` is replaced.
        steps: for the whole generation.
    """

    ranked: Ranked
    steps: int

    def start(self, row: CanvasRow, canvas: Canvas, schedule: Schedule) -> Any:
        """Return how many steps each block gets.

        Raises:
            ConfigError: more steps than tokens to be written, or fewer than blocks.
        """
        return plan_steps(row, canvas, schedule, self.steps)

    def writes(self, reading: Reading, row: CanvasRow | RowTable, memo: Any) -> Bools:
        """Return the best of the block, its share of this step."""
        steps = memo[row.end] if isinstance(row, CanvasRow) else _planned(memo, row.end)
        return self.ranked.best(reading, row, share(reading, row, steps))


def _planned(plans: Sequence[Mapping[int, int]], end: Ids) -> Ids:
    return np.array([[plan[at]] for plan, at in zip(plans, end[:, 0].tolist(), strict=True)])


def plan_steps(row: CanvasRow, canvas: Canvas, schedule: Schedule, steps: int) -> Mapping[int, int]:
    """Return how many of all steps each block gets, by the place where it ends.

    One each, and the others in proportion to the tokens to be written (blocks of a model's own may begin before the
    generation, so that the first is shorter); the remainder goes to the first blocks.

    Raises:
        ConfigError: more steps than tokens to be written, or fewer than blocks.
    """
    size, base, sizes = len(row.tokens), row.base, dict[int, int]()
    while base < size:
        end = schedule.asked(replace(row, base=base, end=base), canvas)
        masked = len(row.undecided(canvas, base, end))
        if masked:
            sizes[end] = masked
        base = end
    count = len(row.undecided(canvas, row.base, size))
    if steps > count:
        raise ConfigError(
            f"steps is {steps}, but {count} tokens are to be written.", f"Use at most {count} steps, or more tokens."
        )
    if steps < len(sizes):
        raise ConfigError(
            f"steps is {steps}, but the text is written in {len(sizes)} blocks.",
            "Every block takes a step: use more steps, or a larger block.",
        )
    spare, room, before, plan = steps - len(sizes), max(count - len(sizes), 1), 0, dict[int, int]()
    for end, masked in sizes.items():
        after = before + masked - 1
        plan[end] = 1 - (-spare * after // room) + (-spare * before // room)
        before = after
    return plan
