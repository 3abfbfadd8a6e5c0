"""Reading beyond the block in work: for rules that decide about, or write, places of later blocks."""

from __future__ import annotations

from dataclasses import dataclass

from outpace.canvas.blocks import Schedule
from outpace.canvas.reading import Reading
from outpace.canvas.row import Canvas, CanvasRow

__all__ = ["Reach"]


@dataclass(frozen=True, slots=True)
class Reach:
    """The blocks of another schedule, with laws asked further than they reach.

    Attributes:
        inner: cuts the blocks.
        places: places behind the block in work whose laws are asked as well; -1 = all.
    """

    inner: Schedule
    places: int = -1

    def asked(self, row: CanvasRow, canvas: Canvas) -> int:
        """Return the end of what is asked; block attention and the end of the text cut it short (see `window`)."""
        size = len(row.tokens)
        return size if self.places < 0 else min(self.inner.asked(row, canvas) + self.places, size)

    def open(self, row: CanvasRow, reading: Reading, canvas: Canvas) -> int:
        """Return where the inner schedule ends the block."""
        return self.inner.open(row, reading, canvas)
