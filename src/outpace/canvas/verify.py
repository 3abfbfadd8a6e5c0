"""Looking ahead without loss: states that a row may come to are forwarded side by side, and walked while right.

A step of the reference is a pure function of a row and of what one forward says of it (`outpace.canvas.advance`). So
what a forward said of one state serves to guess the next ones, and one forward of all of them, each in a copy of its
own, says what the reference says of each. The walk begins at the row itself, takes the reference's step, and goes on
from there as long as the state it comes to is among the guesses. Guesses decide how far it gets, never where.

A guessed state may hold entries that the reference would have computed in the steps between: they are nodes of the
copies before it in the same forward, and it sees exactly those. What the policy drops cannot be hidden from a copy, so
nothing is guessed beyond a step that empties the cache.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from outpace.canvas.advance import Advance, advance
from outpace.canvas.blocks import Schedule
from outpace.canvas.policies import Policy
from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, Canvas, CanvasRow, Ids
from outpace.canvas.rules import Rule
from outpace.canvas.window import Window, lay_window

__all__ = ["Branch", "Branches", "Copy", "Reference", "Reread", "Verified", "grow", "lay_copies", "verify"]

Reread = Callable[[CanvasRow, Window], Reading | None]
"""What an earlier forward said of the places that a state asks for, drawn as that state draws; None = not of all."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The decoding that is to be reproduced.

    Attributes:
        canvas, rule, schedule, policy: as `advance` takes them.
    """

    canvas: Canvas
    rule: Rule
    schedule: Schedule
    policy: Policy

    def advance(self, row: CanvasRow, reading: Reading, window: Window) -> Advance:
        """Return the row after one step of the reference."""
        return advance(row, reading, window, self.canvas, self.rule, self.schedule, self.policy)

    def window(self, row: CanvasRow) -> Window:
        """Return what the reference forwards of a row."""
        return lay_window(row, self.canvas, self.schedule)

    def writes(self, row: CanvasRow, reading: Reading) -> Bools:
        """Return [A] which of the reading's places a step writes."""
        if row.end <= row.base:
            row = replace(row, end=self.schedule.open(row, reading, self.canvas))
        return self.rule.choose(reading, row).writes


Branch = Callable[[], Reading | None]
"""A reading for the rule to decide by, made when it is wanted; None = there is none after all."""
Branches = Callable[[Reference, CanvasRow, Reading], Iterable[tuple[float, Branch]]]
"""What may come of a state and a reading, each with a weight up to 1."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One state in a forward: the row's own (the first), or a guess.

    Attributes:
        row: the state.
        window: what the reference would forward of it.
        parent: the copy that it follows, -1 = it is the row itself.
        slots: [L] where the entries of `row.held` lie: cache slots, then nodes of this forward behind them.
        first: index of its first node in the forward.
        asked: index of its first law in what the forward says.
    """

    row: CanvasRow
    window: Window
    parent: int
    slots: Ids
    first: int
    asked: int

    def after(self, slots: Sequence[int], num_held: int) -> Ids:
        """Return slots of the whole forward for those of this copy alone.

        Args:
            slots: as `Advance.slots`.
            num_held: entries in the cache.
        """
        nodes = num_held + self.first + np.arange(len(self.window.tokens))
        every = np.concatenate([self.slots, nodes])
        return every[np.asarray(slots, dtype=np.int64)]

    def stands_for(self, row: CanvasRow, slots: Ids, reference: Reference) -> bool:
        """Return whether this copy was forwarded exactly as the reference forwards a state.

        Tokens, places, what is asked, the entries that it sees and the key of its draws must agree. What the rule
        remembers need not: the walk goes on with the state itself, never with the guess.
        """
        mine, window = self.window, reference.window(row)
        pairs = (
            (self.row.tokens, row.tokens),
            (self.slots, slots),
            (mine.places, window.places),
            (mine.asked, window.asked),
        )
        return self.row.visit == row.visit and all(np.array_equal(one, other) for one, other in pairs)


@dataclass(frozen=True, slots=True)
class Verified:
    """How far a forward took a row.

    Attributes:
        step: the row and the cache slots that stay.
        reading: what was said of the last state but one, to guess from.
        rows: the row after each step of the reference that was taken.
        guessed: copies forwarded beside the row's own.
    """

    step: Advance
    reading: Reading
    rows: tuple[CanvasRow, ...]
    guessed: int

    @property
    def row(self) -> CanvasRow:
        """The row after the last step."""
        return self.step.row

    @property
    def num(self) -> int:
        """Steps of the reference taken."""
        return len(self.rows)


def grow(
    row: CanvasRow,
    reference: Reference,
    reread: Reread,
    branches: Branches,
    copies: int,
    room: int,
) -> list[Copy]:
    """Return the row's own copy and guesses behind it, the likeliest first; parents precede children.

    Args:
        row: the exact state.
        reference: what is guessed.
        reread: what to guess from.
        branches: what may come of a reading.
        copies: at most so many.
        room: at most so many nodes, but always the row's own.
    """
    num_held, number = len(row.held), itertools.count()
    found = [Copy(row, reference.window(row), -1, np.arange(num_held), 0, 0)]
    heap: list[tuple[float, int, int, Branch]] = []

    def sprout(at: int, weight: float) -> None:
        reading = reread(found[at].row, found[at].window)
        if reading is not None and not reading.is_broken:
            for share, branch in branches(reference, found[at].row, reading):
                heapq.heappush(heap, (-weight * share, next(number), at, branch))

    if copies > 1:
        sprout(0, 1.0)
    while heap and len(found) < copies:
        weight, _, parent, branch = heapq.heappop(heap)
        reading = branch()
        new = None if reading is None else _follow(found, parent, reading, reference)
        if new is None:
            continue
        if new.first + len(new.window.tokens) > room:
            break
        found.append(new)
        if len(found) < copies:
            sprout(len(found) - 1, -weight)
    return found


def _follow(found: Sequence[Copy], parent: int, reading: Reading, reference: Reference) -> Copy | None:
    """Return the copy of what follows a state; None = it is there already, ends the text, or cannot be forwarded."""
    before, last, num_held = found[parent], found[-1], len(found[0].slots)
    step = reference.advance(before.row, reading, before.window)
    slots, window = before.after(step.slots, num_held), reference.window(step.row)
    is_known = any(c.parent == parent and np.array_equal(c.row.tokens, step.row.tokens) for c in found)
    is_held = np.array_equal(slots[:num_held], np.arange(num_held))
    is_token = bool((window.tokens >= 0).all())  # a guess under a constraint may find none
    if is_known or not is_held or not is_token or not len(window.asked):
        return None
    first, asked = last.first + len(last.window.tokens), last.asked + len(last.window.asked)
    return Copy(step.row, window, parent, slots, first, asked)


def lay_copies(copies: Sequence[Copy], canvas: Canvas) -> Window:
    """Return the forward of all copies: each sees its own nodes, and those before it that stand for its entries."""
    windows = [copy.window for copy in copies]
    total, num_held = sum(len(window.tokens) for window in windows), len(copies[0].slots)
    visible = np.zeros((total, total), dtype=np.bool_)
    for copy in copies:
        own = slice(copy.first, copy.first + len(copy.window.tokens))
        visible[own, own] = _sight(copy.window.places, canvas)
        visible[own, copy.slots[num_held:] - num_held] = True
    return Window(
        np.concatenate([window.tokens for window in windows]),
        np.concatenate([window.places for window in windows]),
        np.concatenate([window.asked for window in windows]),
        np.concatenate([copy.first + copy.window.nodes for copy in copies]),
        visible,
    )


def _sight(places: Ids, canvas: Canvas) -> Bools | bool:
    """Return [W, W]: which node of a window sees which, by the model's own attention."""
    if not canvas.block_size:
        return True
    block = places // canvas.block_size
    return block[np.newaxis, :] <= block[:, np.newaxis]


def verify(copies: Sequence[Copy], reference: Reference, read_copy: Callable[[Copy], Reading]) -> Verified | None:
    """Walk from the row itself along the copies that it really comes to; None = its own law is none.

    Args:
        copies: as `grow` gives them.
        reference: what decides.
        read_copy: what the forward says of a copy, drawn as its state draws.
    """
    at, num_held = 0, len(copies[0].slots)
    rows: list[CanvasRow] = []
    state, found = copies[0].row, None
    while True:
        copy = copies[at]
        reading = read_copy(copy)
        if reading.is_broken:
            return found
        step = reference.advance(state, reading, copy.window)
        state = step.row
        rows.append(state)
        slots = copy.after(step.slots, num_held)
        found = Verified(Advance(state, slots.tolist()), reading, tuple(rows), len(copies) - 1)
        following = (
            i for i, other in enumerate(copies) if other.parent == at and other.stands_for(state, slots, reference)
        )
        at = next(following, -1)
        if at < 0:
            return found
