"""What a rule is: settings, what it remembers of a row, and one pure choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from outpace.canvas.blocks import Schedule
from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, Canvas, CanvasRow, Floats, Ids

__all__ = ["Choice", "Rule", "eligible", "surest"]


@dataclass(slots=True)
class Choice:
    """What a rule decided.

    Attributes:
        writes: [A] which of the reading's places are written; at least one of them, unless something is masked again
            (a rule that masks again has to end by itself).
        tokens: [A] other tokens to write than those drawn, or None.
        masked: places to mask again; none that the caller gave.
        memo: what the rule remembers from here on.
        holds: the block stays in work though nothing in it is masked; a rule that holds has to end by itself.
    """

    writes: Bools
    tokens: Ids | None = None
    masked: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    memo: Any = None
    holds: bool = False


class Rule(Protocol):
    """What a sampler is made of: a frozen record of settings that derives from this class.

    What a rule remembers is its memo, one per row, never a field of its own: looking ahead decides on drafts of a row.
    A rule around another one keeps the other's memo inside its own, and hands it on.
    """

    def start(self, row: CanvasRow, canvas: Canvas, schedule: Schedule) -> Any:
        """Return what is remembered of a row before its first step; None = nothing.

        Raises:
            ConfigError: settings under which the row cannot be written.
        """
        del row, canvas, schedule
        return None

    @property
    def is_correcting(self) -> bool:
        """Whether laws are asked of written places as well, which the rule may write anew."""
        return False

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        """Decide for one row.

        Args:
            reading: what the model says of the asked places.
            row: `row.end` is where its block ends; a rule may write beyond it only if it means to.
            memo: what `start` or the last choice remembered.
        """
        ...


def surest(score: Floats, is_open: Bools, count: int) -> Bools:
    """Return [A] the `count` open places of greatest score; ties go to the first place, NaN comes last."""
    ranked = np.where(is_open, np.nan_to_num(score, nan=-np.inf), -np.inf)
    order = np.argsort(-ranked, kind="stable")[: max(count, 0)]
    chosen = np.zeros(len(score), dtype=np.bool_)
    chosen[order] = True
    return chosen & is_open


def eligible(reading: Reading, row: CanvasRow) -> Bools:
    """Return [A] the places of the block in work, without end tokens that have to wait; never none."""
    inside = reading.within(row.end)
    return inside if reading.waits is None else inside & ~reading.waits
