"""Blocks that end where the model is sure that a sentence ends (AdaBlock-dLLM, Lu et al., 2025, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from outpace.canvas.reading import Reading
from outpace.canvas.row import Canvas, CanvasRow

__all__ = ["AdaptiveBlocks"]


@dataclass(frozen=True, slots=True)
class AdaptiveBlocks:
    """Blocks up to the surest delimiter within a window, else of one length.

    Attributes:
        size: places of a block that no delimiter ends.
        delimiters: token ids.
        threshold: least confidence of a delimiter that ends a block.
        share: the window, as a share of the whole generation's length.
    """

    size: int
    delimiters: tuple[int, ...]
    threshold: float = 0.3
    share: float = 0.25

    def asked(self, row: CanvasRow, canvas: Canvas) -> int:
        """Return the end of the block in work; before it is chosen, the end of the window or of a plain block."""
        if row.end > row.base:
            return row.end
        return min(max(row.base + self._window(row), self._plain(row, canvas)), canvas.border(row.base, row.prompt))

    def open(self, row: CanvasRow, reading: Reading, canvas: Canvas) -> int:
        """Return the place behind the surest delimiter of the window, or where a plain block ends."""
        is_end = np.isin(reading.tokens, self.delimiters) & reading.within(row.base + self._window(row))
        found = np.flatnonzero(is_end)
        if len(found):
            best = found[int(np.argmax(reading.confidence[found]))]
            if reading.confidence[best] >= self.threshold:
                return int(reading.places[best]) + 1
        return self._plain(row, canvas)

    def _window(self, row: CanvasRow) -> int:
        size = len(row.tokens)
        return min(int(self.share * (size - row.prompt)), size - row.base)

    def _plain(self, row: CanvasRow, canvas: Canvas) -> int:
        return min(row.base + self.size, canvas.border(row.base, row.prompt), len(row.tokens))
