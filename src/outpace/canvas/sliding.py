"""A window that slides over the canvas with the first undecided place: what decoding from left to right looks at."""

from __future__ import annotations

from dataclasses import dataclass

from outpace.canvas.reading import Reading
from outpace.canvas.row import Canvas, CanvasRow

__all__ = ["Sliding"]


@dataclass(frozen=True, slots=True)
class Sliding:
    """Blocks of one place, so that whatever is decided from the left is final at once.

    Attributes:
        reach: places from the first undecided one on whose laws are wanted; 0 = all of the canvas, or of the model's
            own block.
    """

    reach: int = 0

    def asked(self, row: CanvasRow, canvas: Canvas) -> int:
        """Return where the window ends."""
        stop = row.base + self.reach if self.reach else len(row.tokens)
        return min(stop, canvas.border(row.base, row.prompt), len(row.tokens))

    def open(self, row: CanvasRow, reading: Reading, canvas: Canvas) -> int:
        """Return the place behind the first undecided one."""
        del reading, canvas
        return row.base + 1
