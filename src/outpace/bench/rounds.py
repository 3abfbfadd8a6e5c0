"""Sides that take turns, so that whatever disturbs a machine disturbs all of them alike, and pairs can be compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

__all__ = ["in_turns", "timed"]

_T = TypeVar("_T")


def in_turns(
    sides: Mapping[str, Callable[[], _T]],
    rounds: int,
    *,
    warm_ups: int = 1,
    begin: Callable[[int], bool] | None = None,
) -> dict[str, list[_T]]:
    """Run every side once per round, one after the other, and return what each gave, by round.

    Args:
        sides: by name. Another one begins each round, so that none is always first.
        rounds: how often.
        warm_ups: runs of each side before the first round, whose results are thrown away.
        begin: called with each round's number before it; False ends the measurement.
    """
    for run in sides.values():
        for _ in range(warm_ups):
            run()
    found: dict[str, list[_T]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        if begin is not None and not begin(number):
            break
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            found[name].append(sides[name]())
    return found


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """Return a side that runs something and gives the seconds that it took."""

    def seconds() -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    return seconds
