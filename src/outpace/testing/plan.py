"""Work under a time limit: what is still to do, what that takes at the speed seen so far, and when to stop.

Parts are done in the order of what they tell. One that no longer fits is left out and named, and the clock is looked
at between decoding steps too, so that the limit holds whatever was guessed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["OutOfTime", "Plan", "Progress"]

_T = TypeVar("_T")


class OutOfTime(Exception):
    """The limit was reached inside a part."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the work stands.

    Attributes:
        what: the part that is being done, or was just done.
        elapsed_s: seconds since the start.
        left_s: seconds that the rest is expected to take, None = nothing to tell it by.
        is_done: the part has ended.
    """

    what: str
    elapsed_s: float
    left_s: float | None
    is_done: bool = False


class Plan:
    """Parts to do within a time limit.

    Args:
        limit_s: seconds from now on.
        clock: tells the time in seconds.
        on_progress: told after every part, and between the steps of one.
    """

    def __init__(
        self,
        limit_s: float = 300.0,
        clock: Callable[[], float] = time.perf_counter,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.limit_s, self.clock, self.on_progress = limit_s, clock, on_progress
        self.dropped: list[str] = []  # parts that did not fit, or were cut off
        self._todo: dict[str, tuple[str, float]] = {}
        self._spent: dict[str, tuple[float, float]] = {}  # per kind, seconds and size of what was done
        self._guessed: dict[str, float] = {}
        self._began = self._part_began = clock()
        self._part = ("", "", 0.0)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return self.clock() - self._began

    def add(self, name: str, kind: str, size: float = 1.0) -> None:
        """Put a part on the list; parts of one kind take time in proportion to their sizes."""
        self._todo[name] = (kind, size)

    def forget(self, name: str) -> None:
        """Take a part off the list that turned out not to be needed."""
        self._todo.pop(name, None)

    def guess(self, kind: str, rate: float) -> None:
        """Say what a unit of a kind may take, in seconds, until one has been measured."""
        self._guessed[kind] = rate

    def rate(self, kind: str) -> float | None:
        """Return the seconds that a unit of a kind takes: as measured, else as guessed, else None."""
        seconds, size = self._spent.get(kind, (0.0, 0.0))
        return seconds / size if size else self._guessed.get(kind)

    def do(self, name: str, work: Callable[[], object], *, is_needed: bool = False) -> bool:
        """Do a part of the list if the time left allows; return whether it was done to its end.

        Args:
            name: the part.
            work: does it.
            is_needed: nothing is won without it, so it is begun as long as any time is left.
        """
        kind, size = self._todo.pop(name)
        seconds, done = self._spent.get(kind, (0.0, 0.0))
        # A guess refuses nothing: on a busy machine it may be far off.
        needed_s = seconds / done * size if done and not is_needed else 0.0
        if self.elapsed_s + needed_s >= self.limit_s:
            self.dropped.append(name)
            return False
        self._part, self._part_began = (name, kind, size), self.clock()
        try:
            work()
        except OutOfTime:
            self.dropped.append(name)
            return False
        self._spent[kind] = (seconds + self.clock() - self._part_began, done + size)
        self._part = (name, "", 0.0)
        self._tell(is_done=True)
        return True

    def tick(self) -> bool:
        """Look at the clock between two steps; return False, so that it may be asked for a wish to cancel.

        Raises:
            OutOfTime: the limit is reached.
        """
        if self.elapsed_s >= self.limit_s:
            raise OutOfTime
        self._tell(is_done=False)
        return False

    def each(self, items: Iterable[_T]) -> Iterator[_T]:
        """Yield items, looking at the clock before each."""
        for item in items:
            self.tick()
            yield item

    @property
    def left_s(self) -> float | None:
        """Seconds that the rest is expected to take, never more than the limit leaves; None = nothing is known."""
        _, kind, size = self._part
        rates = {of: self.rate(of) for of in {kind, *(of for of, _ in self._todo.values())} if of}
        if rates and all(rate is None for rate in rates.values()):
            return None
        rest = sum((rates[of] or 0.0) * units for of, units in self._todo.values())
        if kind:
            rest += max(0.0, (rates[kind] or 0.0) * size - (self.clock() - self._part_began))
        return max(0.0, min(rest, self.limit_s - self.elapsed_s))

    def _tell(self, is_done: bool) -> None:
        if self.on_progress is not None:
            self.on_progress(Progress(self._part[0], self.elapsed_s, self.left_s, is_done))
