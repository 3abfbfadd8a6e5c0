"""What a method on a canvas is joined from, handed as one value to everything that works on a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outpace.canvas.blocks import Schedule
from outpace.canvas.policies import Policy
from outpace.canvas.row import Canvas
from outpace.canvas.rules.rule import Rule

__all__ = ["Parts"]


@dataclass(frozen=True, slots=True)
class Parts:
    """A rule, a block schedule and a cache policy on one canvas. All rows of a run share them.

    Attributes:
        canvas: mask token, block size, shift.
        rule: which places a step writes.
        schedule: how the canvas is cut into blocks.
        policy: what the cache keeps.
    """

    canvas: Canvas
    rule: Rule
    schedule: Schedule
    policy: Policy

    def rows(self, index: Sequence[int]) -> Parts:
        """Return itself: it has no row axis (see `outpace.run.state`)."""
        del index
        return self

    def join(self, others: Sequence[Parts]) -> Parts:
        """Return itself: all rows of a run have the same."""
        del others
        return self
