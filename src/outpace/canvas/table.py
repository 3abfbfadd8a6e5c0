"""Rows side by side, as arrays [rows, places]: what a step on all of them at once works on.

A method's state holds `CanvasRows`, which are a list to whoever works on single rows and a table to whoever works on
all; each is made of the other when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from outpace.canvas.row import Bools, CanvasRow, Floats, Ids

__all__ = ["FAR", "CanvasRows", "RowTable"]

FAR = 1 << 40  # stands for a place where a row has fewer than others

Number = TypeVar("Number", np.int64, np.float64)
_NONE = -2  # no token, and no mask


@dataclass(frozen=True)
class RowTable:
    """B rows, padded to P places. Names are those of `CanvasRow`; what is a number there is [B, 1] here.

    Only rows without a constraint lie in a table.

    Attributes:
        tokens, given, log_probs: [B, P]; behind a row's own places there is nothing that is masked or ends a text.
        size: places of each row.
        held: entries in the cache.
        slot: [B, P] where the entry of each place lies in the cache, -1 = it does not; None = the entries are those of
            the first places, in their order, as they are under exact caches.
        ends: [B, E] ids that end each text.
        memo: what the rule remembers, per row.
    """

    tokens: Ids
    given: Bools
    log_probs: Floats
    size: Ids
    prompt: Ids
    base: Ids
    end: Ids
    visit: Ids
    step: Ids
    age: Ids
    held: Ids
    ends: Ids
    memo: list[Any]
    slot: Ids | None = None

    @classmethod
    def of(cls, rows: Sequence[CanvasRow]) -> RowTable | None:
        """Return rows as a table; None where some row is none that lies in one."""
        if any(row.constraint is not None for row in rows):
            return None
        width, most = max(len(row.tokens) for row in rows), max(len(row.ends) for row in rows)
        tokens, ends = np.full((len(rows), width), _NONE), np.full((len(rows), most), _NONE - 1)
        given, log_probs = np.ones((len(rows), width), np.bool_), np.zeros((len(rows), width))
        slot = np.full((len(rows), width), -1)
        for at, row in enumerate(rows):
            own = slice(0, len(row.tokens))
            tokens[at, own], given[at, own], log_probs[at, own] = row.tokens, row.given, row.log_probs
            ends[at, : len(row.ends)] = row.ends
            slot[at, row.held] = np.arange(len(row.held))
        numbers = [(len(r.tokens), r.prompt, r.base, r.end, r.visit, r.step, r.age, len(r.held)) for r in rows]
        size, prompt, base, end, visit, step, age, held = np.array(numbers, dtype=np.int64).T[..., np.newaxis]
        is_prefix = (slot == np.where(np.arange(width) < held, np.arange(width), -1)).all()
        told = (size, prompt, base, end, visit, step, age, held, ends, [row.memo for row in rows])
        return cls(tokens, given, log_probs, *told, None if is_prefix else slot)

    def but(self, **changes: Any) -> RowTable:
        """Return the rows with some fields changed, as `dataclasses.replace` does, which takes ten times as long."""
        other = object.__new__(RowTable)
        other.__dict__.update(self.__dict__, **changes)
        return other

    def row(self, at: int) -> CanvasRow:
        """Return a row by itself."""
        numbers = (self.size, self.prompt, self.base, self.end, self.visit, self.step, self.age, self.held)
        size, prompt, base, end, visit, step, age, count = (int(part[at, 0]) for part in numbers)
        ends = tuple(int(token) for token in self.ends[at] if token >= 0)
        tokens, given, log_probs = self.tokens[at, :size], self.given[at, :size], self.log_probs[at, :size]
        # The places in the order of their slots come behind all places without one.
        held = np.arange(count) if self.slot is None else self.slot[at].argsort()[self.slot.shape[1] - count :]
        return CanvasRow(tokens, given, log_probs, prompt, base, end, ends, visit, step, age, held, self.memo[at])

    def rows(self, index: Sequence[int]) -> RowTable:
        """Return some of the rows, in that order, as wide as all of them."""
        at = list(index)
        arrays = {name: value[at] for name, value in self.__dict__.items() if isinstance(value, np.ndarray)}
        return self.but(**arrays, memo=[self.memo[row] for row in at])

    def prefilled(self, lengths: Sequence[int]) -> RowTable:
        """Return the rows with what the loop's prefill has cached of new ones, whose caches are so long."""
        held = np.array(lengths).reshape(-1, 1)
        if (is_same := held == self.held).all():
            return self
        if self.slot is None:
            return self.but(held=held)
        place = np.arange(self.tokens.shape[1])
        return self.but(held=held, slot=np.where(is_same, self.slot, np.where(place < held, place, -1)))

    def is_held(self) -> Bools:
        """Return [B, P] the places whose entries lie in the cache."""
        return np.arange(self.tokens.shape[1]) < self.held if self.slot is None else self.slot >= 0

    def at(self, values: npt.NDArray[Number], place: Ids) -> npt.NDArray[Number]:
        """Return [B, N] of values [B, P] those at places [B, N]; anything where a place lies behind a row."""
        first = np.arange(len(values))[:, np.newaxis] * values.shape[1]
        found: npt.NDArray[Number] = values.ravel().take(first + place, mode="clip")
        return found

    def live(self) -> Ids:
        """Return [B, 1] where each text ends, as `CanvasRow.live`."""
        if not self.ends.shape[1]:
            return self.size
        is_end = self.tokens == self.ends[:, :1]
        for at in range(1, self.ends.shape[1]):
            is_end |= self.tokens == self.ends[:, at : at + 1]
        if not is_end.any():
            return self.size
        is_end &= np.arange(self.tokens.shape[1]) >= self.prompt
        return first_of(is_end, self.size - 1) + 1


def first_of(marks: Bools, otherwise: Ids) -> Ids:
    """Return [B, 1] the first marked place of each row, [B, 1] `otherwise` where none is."""
    return np.where(marks.any(1, keepdims=True), marks.argmax(1)[:, np.newaxis], otherwise)


class CanvasRows(Sequence[CanvasRow]):
    """The rows of a batch.

    Args:
        rows: as a list, or as a table.
    """

    def __init__(self, rows: Sequence[CanvasRow] | RowTable) -> None:
        self._table = rows if isinstance(rows, RowTable) else None
        self._list = None if isinstance(rows, RowTable) else list(rows)

    def table(self) -> RowTable | None:
        """Return the rows as a table; None where they lie in none."""
        if self._table is None:
            self._table = RowTable.of(self.list())
        return self._table

    def list(self) -> list[CanvasRow]:
        """Return the rows as a list."""
        if self._list is None:
            assert self._table is not None  # one of the two is there
            self._list = [self._table.row(at) for at in range(len(self._table.memo))]
        return self._list

    def __len__(self) -> int:
        return len(self._list) if self._list is not None else len(self.list())

    def __getitem__(self, at: Any) -> Any:
        return self.list()[at]

    def __iter__(self) -> Iterator[CanvasRow]:
        return iter(self.list())

    def rows(self, index: Sequence[int]) -> CanvasRows:
        """Return some of the rows, in that order."""
        return CanvasRows([self.list()[at] for at in index] if self._table is None else self._table.rows(index))

    def join(self, others: Sequence[CanvasRows]) -> CanvasRows:
        """Return the rows of several, these among them."""
        return CanvasRows([row for rows in others for row in rows])
