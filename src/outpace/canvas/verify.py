"""Looking ahead without loss: states that a row may come to are forwarded side by side, and walked while right.

A step of the reference is a pure function of a row and of what one forward says of it (`outpace.canvas.advance`). So
what a forward said of one state serves to guess the next ones, and one forward of all of them, each in a copy of its
own, says what the reference says of each. The walk begins at the row itself, takes the reference's step, and goes on
from there as long as the state it comes to is among the guesses. Guesses decide how far it gets, never where.

What the policy drops cannot be hidden from a copy, so nothing is guessed beyond a step that empties the cache.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from outpace.canvas.advance import Advance, advance, begun
from outpace.canvas.copies import Copy
from outpace.canvas.parts import Parts
from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, CanvasRow, Ids
from outpace.canvas.window import CanvasWindow, lay_window

__all__ = ["Brancher", "Guess", "Reread", "Verified", "grow", "verify", "writes"]

Reread = Callable[[CanvasRow, CanvasWindow], Reading | None]
"""What an earlier forward said of the places that a state asks for, drawn as that state draws; None = not of all."""
Guess = Callable[[], Reading | None]
"""A reading for the rule to decide by, made when it is wanted; None = there is none after all."""
Brancher = Callable[[Parts, CanvasRow, Reading], Iterable[tuple[float, Guess]]]
"""What may come of a state and a reading, each with a weight up to 1."""


@dataclass(frozen=True, slots=True)
class Verified(Advance):
    """How far a forward took a row, and which cache slots stay.

    Attributes:
        reading: what was said of the last state but one, to guess from.
        rows: the row after each step of the reference that was taken.
        guessed: copies forwarded beside the row's own.
    """

    reading: Reading
    rows: tuple[CanvasRow, ...]
    guessed: int

    @property
    def num(self) -> int:
        """Steps of the reference taken."""
        return len(self.rows)


def writes(parts: Parts, row: CanvasRow, reading: Reading) -> Bools:
    """Return [A] which of the reading's places a step of the reference writes."""
    row = begun(row, reading, parts)
    return parts.rule.choose(reading, row, row.memo).writes


def grow(row: CanvasRow, parts: Parts, reread: Reread, branches: Brancher, copies: int, room: int) -> list[Copy]:
    """Return the row's own copy and guesses behind it, the likeliest first; parents precede children.

    Args:
        row: the exact state.
        parts: of the reference.
        reread: what to guess from.
        branches: what may come of a reading.
        copies: at most so many.
        room: at most so many nodes, but always the row's own.
    """
    found, number = [Copy.of(row, parts)], itertools.count()
    heap: list[tuple[float, int, int, Guess]] = []

    def sprout(at: int, weight: float) -> None:
        """Put what may come of a copy on the heap, by how likely the whole way to it is."""
        reading = reread(found[at].row, found[at].window)
        if reading is not None and not reading.is_broken:
            for share, guess in branches(parts, found[at].row, reading):
                heapq.heappush(heap, (-weight * share, next(number), at, guess))

    if copies > 1:
        sprout(0, 1.0)
    while heap and len(found) < copies:
        weight, _, parent, guess = heapq.heappop(heap)
        # Only now is the guess worked out: most of the heap is never wanted.
        reading = guess()
        new = None if reading is None else _follow(found, parent, reading, parts)
        if new is None:
            continue
        if new.first + len(new.window.tokens) > room:
            break
        found.append(new)
        if len(found) < copies:
            sprout(len(found) - 1, -weight)
    return found


def _follow(found: Sequence[Copy], parent: int, reading: Reading, parts: Parts) -> Copy | None:
    """Return the copy of what follows a state; None = it is there already, ends the text, or cannot be forwarded."""
    before, num_held = found[parent], len(found[0].slots)
    step = advance(before.row, reading, before.window, parts)
    slots, window = before.after(step.slots, num_held), lay_window(step.row, parts)
    # Two guesses may differ in places that a constraint levels: one copy of a state is enough.
    is_known = any(c.parent == parent and np.array_equal(c.row.tokens, step.row.tokens) for c in found)
    # A copy sees the whole cache, so a state behind a step that drops entries would see too much.
    is_held = np.array_equal(slots[:num_held], np.arange(num_held))
    is_token = bool((window.tokens >= 0).all())  # a guess under a constraint may find none
    if is_known or not is_held or not is_token or not len(window.asked):
        return None
    return Copy(step.row, window, parent, slots).behind(found[-1])


def _stands_for(copy: Copy, row: CanvasRow, slots: Ids, parts: Parts) -> bool:
    """Return whether a copy was forwarded exactly as the reference forwards a state.

    Tokens, places, what is asked, the entries that it sees and the key of its draws must agree. What the rule
    remembers need not: the walk goes on with the state itself, never with the guess.
    """
    # The cheapest first: most guesses that are wrong differ in their tokens.
    if copy.row.visit != row.visit or not np.array_equal(copy.row.tokens, row.tokens):
        return False
    mine, window = copy.window, lay_window(row, parts)
    pairs = ((copy.slots, slots), (mine.places, window.places), (mine.asked, window.asked))
    return all(np.array_equal(one, other) for one, other in pairs)


def verify(copies: Sequence[Copy], parts: Parts, read_copy: Callable[[Copy], Reading]) -> Verified | None:
    """Walk from the row itself along the copies that it really comes to; None = its own law is none.

    Args:
        copies: as `grow` gives them.
        parts: of the reference, which decides.
        read_copy: what the forward says of a copy, drawn as its state draws.
    """
    at, num_held, rows = 0, len(copies[0].slots), list[CanvasRow]()
    state, found = copies[0].row, None
    while True:
        # 1. What the reference would be told here. A broken law ends the walk; the steps before it were sound.
        copy = copies[at]
        reading = read_copy(copy)
        if reading.is_broken:
            return found
        # 2. The reference's step, from the true state: the guess only lent it its forward.
        step = advance(state, reading, copy.window, parts)
        state = step.row
        rows.append(state)
        slots = copy.after(step.slots, num_held)
        found = Verified(state, slots, reading, tuple(rows), len(copies) - 1)
        # 3. On, if some guess is where the reference came to.
        following = (
            i for i, other in enumerate(copies) if other.parent == at and _stands_for(other, state, slots, parts)
        )
        at = next(following, -1)
        if at < 0:
            return found
