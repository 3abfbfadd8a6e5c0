"""States of one row side by side in one forward, each in a copy of its own: the row as it is, guesses, or versions.

A copy sees its own nodes and the cache. A guessed state may hold entries that the reference would have computed in the
steps between: they are nodes of the copies before it in the same forward, and it sees exactly those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from outpace.canvas.advance import Advance
from outpace.canvas.parts import Parts
from outpace.canvas.row import Bools, Canvas, CanvasRow, Ids
from outpace.canvas.window import CanvasWindow, lay_window, propose_windows
from outpace.types import Proposal

__all__ = ["Copy", "lay_copies", "place_copies", "propose_copies"]


@dataclass(frozen=True, slots=True)
class Copy:
    """One state in a forward.

    Attributes:
        row: the state.
        window: what is forwarded of it.
        parent: the copy that it follows, -1 = none.
        slots: [L] where the entries of `row.held` lie: cache slots, then nodes of this forward behind them.
        first: index of its first node in the forward.
        asked: index of its first law in what the forward says.
    """

    row: CanvasRow
    window: CanvasWindow
    parent: int
    slots: Ids
    first: int = 0
    asked: int = 0

    @classmethod
    def of(cls, row: CanvasRow, parts: Parts) -> Copy:
        """Return a row as it is, the first of its forward."""
        return cls(row, lay_window(row, parts), -1, np.arange(len(row.held)))

    @property
    def laws(self) -> slice:
        """Which of the laws of a row's forward are said of this copy."""
        return slice(self.asked, self.asked + len(self.window.asked))

    def behind(self, last: Copy) -> Copy:
        """Return this copy laid behind another one."""
        first, asked = last.first + len(last.window.tokens), last.asked + len(last.window.asked)
        return replace(self, first=first, asked=asked)

    def after(self, slots: Ids, num_held: int) -> Ids:
        """Return slots of the whole forward for those of this copy alone.

        Args:
            slots: as `Advance.slots`.
            num_held: entries in the cache.
        """
        nodes = num_held + self.first + np.arange(len(self.window.tokens))
        return np.concatenate([self.slots, nodes])[slots]

    def moved(self, step: Advance, num_held: int) -> Advance:
        """Return a step from this copy with slots of the whole forward."""
        return step if self.first == 0 else Advance(step.row, self.after(step.slots, num_held))


def place_copies(rows: Sequence[CanvasRow], parts: Parts) -> list[Copy]:
    """Return copies of versions of one row, which hold the same places in the cache, laid behind one another."""
    found = [Copy.of(rows[0], parts)]
    for row in rows[1:]:
        found.append(Copy.of(row, parts).behind(found[-1]))
    return found


def propose_copies(rows: Sequence[Sequence[Copy]], canvas: Canvas, device: torch.device, origin: str) -> Proposal:
    """Lay the copies of all rows out as one forward; `carry` holds them."""
    is_plain = all(len(copies) == 1 for copies in rows)
    # A forward has one kind of mask: beside a row with several copies, a single one says what it sees as well.
    windows = [copies[0].window if is_plain else lay_copies(copies, canvas) for copies in rows]
    proposal = propose_windows(windows, device, origin)
    proposal.carry = list(rows)
    return proposal


def lay_copies(copies: Sequence[Copy], canvas: Canvas) -> CanvasWindow:
    """Return the forward of all copies: each sees its own nodes, and those before it that stand for its entries."""
    windows = [copy.window for copy in copies]
    total, num_held = sum(len(window.tokens) for window in windows), len(copies[0].slots)
    visible = np.zeros((total, total), dtype=np.bool_)
    for copy in copies:
        own = slice(copy.first, copy.first + len(copy.window.tokens))
        visible[own, own] = _sight(copy, canvas)
        visible[own, copy.slots[num_held:] - num_held] = True
    return CanvasWindow(
        np.concatenate([window.tokens for window in windows]),
        np.concatenate([window.places for window in windows]),
        np.concatenate([window.asked for window in windows]),
        np.concatenate([copy.first + copy.window.nodes for copy in copies]),
        visible,
    )


def _sight(copy: Copy, canvas: Canvas) -> Bools | bool:
    """Return [W, W]: which node of a copy sees which, by the model's own attention."""
    found = canvas.sight(copy.window.places, copy.row.base, copy.row.prompt)
    return True if found is None else found
