"""A view of some rows of a cache, for a forward on these alone: what it stages and keeps is staged and kept there."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from outpace.cache.counter import Counter
from outpace.cache.static import Cache, Each, spread

__all__ = ["Part", "beside"]


class Part(Cache):
    """Some rows of another cache; it owns nothing, so it ends when rows join or leave there.

    Args:
        base: the cache.
        index: its rows, none twice.
    """

    def __init__(self, base: Cache, index: Sequence[int]) -> None:
        self._base, self._index = base, list(index)
        self.slot_axis, self.counter, self.limit = base.slot_axis, base.counter, base.limit
        self.has_fixed_extent = base.has_fixed_extent

    @property
    def lengths(self) -> list[int]:
        """Valid entries per row."""
        return [self._base.lengths[row] for row in self._index]

    @lengths.setter
    def lengths(self, values: list[int]) -> None:
        self._base.lengths = self._spread(values, self._base.lengths)

    @property
    def phases(self) -> list[int]:
        """How each row's positions turn."""
        return [self._base.phases[row] for row in self._index]

    @phases.setter
    def phases(self, values: list[int]) -> None:
        self._base.phases = self._spread(values, self._base.phases)

    @property
    def buffers(self) -> list[Tensor]:
        """Those of the whole cache: rows are found in them by `tables`."""
        return self._base.buffers

    @buffers.setter
    def buffers(self, values: list[Tensor]) -> None:
        self._base.buffers = values

    @property
    def extra(self) -> list[Tensor]:
        """What never grows, of these rows."""
        return [tensor[self._index] for tensor in self._base.extra]

    @extra.setter
    def extra(self, values: list[Tensor]) -> None:
        raise TypeError("Rows of a part cannot be encoded anew.")

    @property
    def device(self) -> torch.device:
        """Where entries lie."""
        return self._base.device

    @property
    def capacity(self) -> int:
        """Slots per row that there may be."""
        return self._base.capacity

    @property
    def slots(self) -> int:
        """Slots per row that there are now."""
        return self._base.slots

    @property
    def page_size(self) -> int:
        """Slots that lie side by side."""
        return self._base.page_size

    def tables(self) -> list[array[int]]:
        """Return where the rows' slots lie."""
        tables = self._base.tables()
        return [tables[row] for row in self._index]

    def reserve(self, slots: int) -> None:
        """Grow the whole cache."""
        self._base.reserve(slots)

    def stage(self, position: Tensor) -> None:
        """Make room for a forward on these rows."""
        whole = position.new_full((len(self._base.lengths), position.shape[1]), -1)
        whole[self._index] = position
        self._base.stage(whole)

    @contextmanager
    def dense(self, size: int) -> Iterator[Cache]:
        """Lend these rows side by side: neighbours of a static cache as they lie, others as copies."""
        with self._base.dense_rows(self._index, size) as lent:
            yield lent

    @contextmanager
    def aside(self, lengths: Sequence[int], size: int, counter: Counter) -> Iterator[Cache]:
        """Lend the first entries of each row; the other rows stand aside."""
        with self._base.aside(self._spread(lengths, self._base.lengths), size, counter) as fork:
            yield Part(fork, self._index)

    def keep(self, staged: Sequence[Sequence[int]]) -> None:
        """Make staged entries valid."""
        self._base.keep_rows(self._index, staged)

    def retain(self, slots: Sequence[Sequence[int]]) -> None:
        """Make the given slots of these rows valid, and forget all others of theirs."""
        self._base.retain_rows(self._index, slots)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget entries at and beyond `lengths[b]`."""
        self._base.truncate_rows(self._index, lengths)

    def restart(self, row: int, phase: int) -> None:
        """Forget a row's entries."""
        self._base.restart(self._index[row], phase)

    def fork(self, counter: Counter | None = None) -> Cache:
        """Return an overlay of these rows."""
        return Part(self._base.fork(counter), self._index)

    def rows(self, index: Sequence[int]) -> Cache:
        """Return a copy of some of these rows, a cache of its own."""
        return self._base.rows([self._index[row] for row in index])

    def part(self, index: Sequence[int]) -> Cache:
        """Return a view of some of these rows."""
        return Part(self._base, [self._index[row] for row in index])

    def read(self, row: int, slots: Sequence[int]) -> list[Tensor]:
        """Return copies of entries of a row, slots first."""
        return self._base.read(self._index[row], slots)

    def write(self, row: int, first: int, entries: Sequence[Tensor]) -> None:
        """Write entries to the slots of a row from `first` on."""
        self._base.write(self._index[row], first, entries)

    def follow(self, source: Sequence[int]) -> None:
        """Refused: a part has no rows of its own to exchange."""
        raise TypeError("Rows of a part cannot go on from each other.")

    def leave(self, stay: Sequence[int]) -> None:
        """Look at these rows only."""
        self._index = [self._index[row] for row in stay]

    def owned(self) -> Cache:
        """Return a copy, which may join others."""
        return self.rows(range(len(self._index)))

    def _spread(self, values: Sequence[Each], others: Sequence[Each]) -> list[Each]:
        return spread(self._index, values, others)


@contextmanager
def beside(cache: Cache, index: Sequence[int], size: int) -> Iterator[Cache]:
    """Lend some rows of a static cache side by side, for a forward of `size` tokens: as they lie, or as copies."""
    first, count = index[0] if index else 0, len(index)
    if type(cache) is Cache and list(index) == list(range(first, first + count)):
        yield cache.lend([buffer[first : first + count] for buffer in cache.buffers], index)
        return
    lengths, axis = [cache.lengths[row] for row in index], cache.slot_axis
    extent = cache.capacity if cache.has_fixed_extent else max(lengths, default=0) + size
    buffers = []
    for buffer in cache.buffers:
        shape = [len(index), *buffer.shape[1:]]
        shape[axis] = extent
        buffers.append(buffer.new_zeros(shape))
    for place, (row, length) in enumerate(zip(index, lengths, strict=True)):
        # Staged entries too: another model's, which this forward does not write, go back as they were.
        held = min(length + size, cache.slots)
        for buffer, entries in zip(buffers, cache.read(row, range(held)), strict=True):
            buffer[place].movedim(axis - 1, 0)[:held] = entries
    lent = cache.lend(buffers, index)
    yield lent
    for place, (row, length) in enumerate(zip(index, lengths, strict=True)):
        cache.write(row, length, [buffer[place].movedim(axis - 1, 0)[length : length + size] for buffer in buffers])
    cache.take_back(lent, index)
