"""What a rule is: settings, what it remembers of a row, and one pure choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from outpace.canvas.blocks import Schedule
from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, Canvas, CanvasRow, Floats, Ids
from outpace.canvas.table import RowTable

__all__ = ["Choice", "Rule", "eligible", "first_ranked", "ranks", "surest"]

LEAST = np.finfo(np.float64).min


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

    A rule says `choose`, for one row; or, where it only picks places by what is said of them, `writes` over arrays,
    which serves one row and all rows of a step at once.

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

    @property
    def is_stated_over_arrays(self) -> bool:
        """Whether `writes` is all there is to say: of several rows at once, and with a memo that stays as it is."""
        own = type(self)
        return own.writes is not Rule.writes and own.choose is Rule.choose and not self.is_correcting

    def writes(self, reading: Reading, row: CanvasRow | RowTable, memo: Any) -> Bools:
        """Return which of the reading's places are written.

        Args:
            reading: of one row, arrays [A], or of all rows, [B, A].
            row: its fields are numbers, or arrays [B, 1].
            memo: what `start` remembered, or a list of that.
        """
        raise TypeError(f"{type(self).__name__} decides for one row at a time.")

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        """Decide for one row.

        Args:
            reading: what the model says of the asked places.
            row: `row.end` is where its block ends; a rule may write beyond it only if it means to.
            memo: what `start` or the last choice remembered.
        """
        return Choice(self.writes(reading, row, memo), memo=memo)


def ranks(score: Floats, is_open: Bools) -> Ids:
    """Return [..., A] the open places by score, the greatest first, and the others behind them; ties: the first one."""
    # A score of -inf, or that is none, still comes before the places that are not open.
    return np.argsort(-np.where(is_open, np.fmax(score, LEAST), -np.inf), axis=-1, kind="stable")


def surest(score: Floats, is_open: Bools, count: int | Ids) -> Bools:
    """Return [..., A] the open places of greatest score; ties go to the first place, NaN comes last.

    Args:
        score, is_open: [..., A].
        count: of them, a number or [..., 1].
    """
    size = score.shape[-1]
    if isinstance(count, int) and count == 1:  # as most rules do: no order is needed then
        best: Any = np.where(is_open, np.fmax(score, LEAST), -np.inf).argmax(-1) if size else np.int64(-1)
        chosen: Bools = np.arange(size) == best[..., np.newaxis]
        return chosen & is_open
    return first_ranked(ranks(score, is_open), count) & is_open


def first_ranked(order: Ids, count: int | Ids) -> Bools:
    """Return [..., A] the places that stand first in an order of them.

    Args:
        order: [..., A] places.
        count: of them, a number or [..., 1].
    """
    chosen = np.zeros(order.shape, dtype=np.bool_)
    np.put_along_axis(chosen, order, np.arange(order.shape[-1]) < count, -1)
    return chosen


def eligible(reading: Reading, row: CanvasRow | RowTable) -> Bools:
    """Return [..., A] the places of the block in work, without end tokens that have to wait; never none."""
    inside = reading.within(row.end)
    return inside if reading.waits is None else inside & ~reading.waits
