"""Block schedules: where the block in work ends, and how far the model is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from outpace.canvas.reading import Reading
from outpace.canvas.row import Canvas, CanvasRow, Ids, Number
from outpace.canvas.table import RowTable

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

    def asked_all(self, rows: RowTable, canvas: Canvas) -> Ids:
        """Return [B, 1] the end of each row's block in work, or of the next one: what `asked` and `open` say of one."""
        end = np.minimum(self._plain_end(rows.base, rows.prompt, canvas), canvas.border(rows.base, rows.prompt))
        return np.where(rows.end > rows.base, rows.end, np.minimum(end, rows.size))

    def _end(self, row: CanvasRow, canvas: Canvas) -> int:
        return min(self._plain_end(row.base, row.prompt, canvas), canvas.border(row.base, row.prompt), len(row.tokens))

    def _plain_end(self, base: Number, prompt: Number, canvas: Canvas) -> Number:
        # Under block attention blocks are the model's, cut at absolute places; else they count from the prompt.
        start = canvas.floor(base, prompt) if canvas.block_size else prompt
        return start + ((base - start) // self.size + 1) * self.size
