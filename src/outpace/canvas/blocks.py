"""Block schedules: where the block in work ends, and how far the model is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from outpace.canvas.reading import Reading
from outpace.canvas.row import Canvas, CanvasRow

__all__ = ["FixedBlocks", "Schedule"]


class Schedule(Protocol):
    """How a canvas is cut into blocks that are finished from left to right (semi-autoregressive)."""

    def asked(self, row: CanvasRow, canvas: Canvas) -> int:
        """Return the place up to which the laws of undecided places are wanted in the next forward."""
        ...

    def open(self, row: CanvasRow, reading: Reading, canvas: Canvas) -> int:
        """Return where the block that begins at `row.base` ends, beyond `row.base`; asked once per block."""
        ...


@dataclass(frozen=True, slots=True)
class FixedBlocks:
    """Blocks of one length, counted from the beginning of the generation; one block may be the whole canvas.

    Attributes:
        size: places per block; never across the border of a model's own block.
    """

    size: int

    def asked(self, row: CanvasRow, canvas: Canvas) -> int:
        """Return the end of the block in work."""
        return row.end if row.end > row.base else self._end(row, canvas)

    def open(self, row: CanvasRow, reading: Reading, canvas: Canvas) -> int:
        """Return the next multiple of the block."""
        del reading
        return self._end(row, canvas)

    def _end(self, row: CanvasRow, canvas: Canvas) -> int:
        # Under block attention blocks are the model's, cut at absolute places; else they count from the prompt.
        start = canvas.floor(row) if canvas.block_size else row.prompt
        end = start + ((row.base - start) // self.size + 1) * self.size
        return min(end, canvas.border(row), len(row.tokens))
