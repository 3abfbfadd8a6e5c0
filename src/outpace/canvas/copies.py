"""Several versions of one row in one forward, side by side, blind to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from outpace.canvas.advance import Advance
from outpace.canvas.blocks import Schedule
from outpace.canvas.row import Bools, Canvas, CanvasRow, Ids
from outpace.canvas.window import Window, lay_window

__all__ = ["Copies", "lay_copies", "shifted"]


@dataclass(frozen=True, slots=True)
class Copies(Window):
    """A window made of the windows of several rows that share a cache.

    Attributes:
        rows: the versions.
        windows: theirs.
    """

    rows: tuple[CanvasRow, ...] = ()
    windows: tuple[Window, ...] = ()

    def parts(self) -> list[tuple[CanvasRow, Window, slice, int]]:
        """Return, per version: the row, its window, which asked places are its own, and its first node."""
        found, asked, node = [], 0, 0
        for row, window in zip(self.rows, self.windows, strict=True):
            found.append((row, window, slice(asked, asked + len(window.asked)), node))
            asked, node = asked + len(window.asked), node + len(window.tokens)
        return found


def lay_copies(rows: Sequence[CanvasRow], canvas: Canvas, schedule: Schedule) -> Copies:
    """Lay versions of one row, which hold the same places in the cache, behind one another.

    Args:
        rows: at least one; their `held` are equal.
        canvas: the run's.
        schedule: of the blocks.
    """
    windows = tuple(lay_window(row, canvas, schedule) for row in rows)
    starts = np.cumsum([0, *(len(window.tokens) for window in windows)])
    visible = np.zeros((starts[-1], starts[-1]), dtype=np.bool_)
    for window, start in zip(windows, starts, strict=False):
        end = start + len(window.tokens)
        visible[start:end, start:end] = _own_sight(window.places, canvas)
    return Copies(
        np.concatenate([window.tokens for window in windows]),
        np.concatenate([window.places for window in windows]),
        np.concatenate([window.asked for window in windows]),
        np.concatenate([window.nodes + start for window, start in zip(windows, starts, strict=False)]),
        visible,
        tuple(rows),
        windows,
    )


def shifted(step: Advance, held: int, start: int) -> Advance:
    """Return a step whose slots count a version's nodes from its first node, not from the window's.

    Args:
        step: as `advance` returns it for the version's own window.
        held: cache entries before the step.
        start: the version's first node.
    """
    return Advance(step.row, [slot if slot < held else slot + start for slot in step.slots])


def _own_sight(places: Ids, canvas: Canvas) -> Bools:
    """Return [W, W] what the model's own attention shows."""
    block = places // canvas.block_size if canvas.block_size else np.zeros_like(places)
    return block[None, :] <= block[:, None]
