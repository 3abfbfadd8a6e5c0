"""The memory of paged caches: a pool of pages that rows share, each page counted by those who hold it.

A page holds `page_size` neighbouring slots of one row, in all stored tensors. Who writes to a page that others hold
too gets a copy first. The pool's memory is asked for at once, but the system gives it when a page is first written, and
free pages with low numbers go first.

A pool belongs to one thread; only the tables that the garbage collector finds may be dropped by others.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outpace.cache.counter import Counter
from outpace.errors import ConfigError, NoPages

if TYPE_CHECKING:
    from outpace.cache.paged import PagedCache

__all__ = ["PAGE_GRAIN", "Pages", "Table"]

PAGE_GRAIN = 16  # page sizes are multiples of it: compiled attention takes as many slots at a time


class Pages:
    """A pool of pages.

    Args:
        stacks: stored tensors of one shape in one piece, uninitialised: e.g. for two per layer
            [2 * layers, num_pages, K, page_size, D]. Entries of all that are in a stack move at once.
        slot_axis: the axis of each tensor, as `buffers` holds them, that counts the slots of a page.

    Attributes:
        buffers: every stored tensor by itself, pages on axis 0.
        evict: called with a number of pages that are short, to give back pages that nobody needs at the moment.

    Raises:
        ConfigError: there is no page, or the page size is no multiple of `PAGE_GRAIN`.
    """

    def __init__(self, stacks: Sequence[Tensor], slot_axis: int = 2) -> None:
        self.buffers: list[Tensor] = [buffer for stack in stacks for buffer in stack]
        self.slot_axis = slot_axis
        self._entries = [stack.movedim(slot_axis + 1, 2) for stack in stacks]  # each [count, pages, page_size, ...]
        self.num_pages, self.page_size = int(self.buffers[0].shape[0]), int(self.buffers[0].shape[slot_axis])
        if self.num_pages < 1 or self.page_size < 1 or self.page_size % PAGE_GRAIN:
            raise ConfigError(
                f"A cache of {self.num_pages} pages of {self.page_size} slots cannot be made.",
                f"Give one page at least, and a page size that is a multiple of {PAGE_GRAIN}.",
            )
        self._scratch = [entries.new_empty(0) for entries in self._entries]  # fresh memory would cost more than copying
        self.evict: Callable[[int], object] | None = None
        self._uses = [0] * self.num_pages
        self._free = list(range(self.num_pages))  # a heap: rows lie together, in what memory was touched before
        self._dropped: deque[array[int]] = deque()

    @property
    def device(self) -> torch.device:
        """Where the pages lie."""
        return self.buffers[0].device

    @property
    def counts(self) -> list[int]:
        """Stored tensors per stack."""
        return [len(entries) for entries in self._entries]

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        self._collect()
        return len(self._free)

    @property
    def page_bytes(self) -> int:
        """Memory of a page in bytes."""
        return sum(buffer[0].numel() * buffer.element_size() for buffer in self.buffers)

    def needed(self, slots: int, held: int = 0) -> int:
        """Return how many more pages a row needs for `slots` slots when it holds `held` pages."""
        return max(0, -(-slots // self.page_size) - held)

    def uses(self, page: int) -> int:
        """Return how many hold a page."""
        self._collect()
        return self._uses[page]

    def take(self, count: int) -> list[int]:
        """Return so many pages, held once each.

        Raises:
            NoPages: there are too few, after `evict` too; nothing is taken.
        """
        if count > self.num_free and self.evict is not None:
            self.evict(count - self.num_free)
        if count > self.num_free:
            raise NoPages(count, self.num_free)
        pages = [heapq.heappop(self._free) for _ in range(count)]
        for page in pages:
            self._uses[page] = 1
        return pages

    def hold(self, pages: Sequence[int]) -> None:
        """Count one more holder of each page."""
        for page in pages:
            self._uses[page] += 1

    def drop(self, pages: Sequence[int]) -> None:
        """Count one holder less of each page; one that nobody holds is free."""
        for page in pages:
            self._uses[page] -= 1
            if not self._uses[page]:
                heapq.heappush(self._free, page)

    def drop_later(self, pages: array[int]) -> None:
        """As `drop`, when the pool is next asked; from any thread."""
        self._dropped.append(pages)

    def copy(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Copy the entries of pages to others."""
        if old:
            source, target = (torch.tensor(pages, device=self.device) for pages in (old, new))
            for entries in self._entries:
                entries[:, target] = entries[:, source]

    def read(self, slots: Sequence[tuple[Sequence[int], int]]) -> list[Tensor]:
        """Return copies of entries, per stack [count, len(slots), ...]; of each the table of its row, and its slot."""
        pages, offsets = self._places(slots)
        return [entries[:, pages, offsets] for entries in self._entries]

    def gather(self, tables: Sequence[Sequence[int]], lengths: Sequence[int], extent: int) -> list[Tensor]:
        """Return copies of the first entries of some rows, side by side, with zeros behind them.

        They hold until it is called again.

        Args:
            tables: of the rows.
            lengths: entries per row.
            extent: slots per row.

        Returns:
            Per stack [count, rows, ..., extent, ...], the slots where a buffer has them.
        """
        most, axis = self.needed(extent), self.slot_axis
        pages = [[*table[: self.needed(n)], *[0] * most][:most] for table, n in zip(tables, lengths, strict=True)]
        chosen, gathered = torch.tensor(pages, dtype=torch.int64, device=self.device).view(-1), []
        for number, entries in enumerate(self._entries):
            stack = entries.movedim(2, axis + 1).movedim(1, axis)  # [count, ..., pages, page_size, ...], as it lies
            shape = [*stack.shape[:axis], len(chosen), *stack.shape[axis + 1 :]]
            if self._scratch[number].numel() < (size := math.prod(shape)):
                with torch.inference_mode(False):  # it outlives a caller's mode
                    self._scratch[number] = entries.new_empty(size * 5 // 4)
            copies = torch.index_select(stack, axis, chosen, out=self._scratch[number][:size].view(shape))
            picked = copies.unflatten(axis, (len(tables), most)).movedim(axis, 1)
            rows = picked.flatten(axis + 1, axis + 2).narrow(axis + 1, 0, extent)
            for row, length in enumerate(lengths):
                rows[:, row].narrow(axis, length, extent - length).zero_()
            gathered.append(rows)
        return gathered

    def write(self, slots: Sequence[tuple[Sequence[int], int]], new: Sequence[Tensor]) -> None:
        """Write entries, as `read` returns them; nobody else holds the pages."""
        pages, offsets = self._places(slots)
        for entries, values in zip(self._entries, new, strict=True):
            entries[:, pages, offsets] = values

    def _places(self, slots: Sequence[tuple[Sequence[int], int]]) -> tuple[Tensor, Tensor]:
        pages = [table[slot // self.page_size] for table, slot in slots]
        offsets = [slot % self.page_size for _, slot in slots]
        return torch.tensor(pages, device=self.device).long(), torch.tensor(offsets, device=self.device).long()

    def new_cache(self, rows: int, counter: Counter | None = None, capacity: int = 0) -> PagedCache:
        """Return an empty cache on these pages; rows hold pages only for what is in them.

        Args:
            rows: its rows; others may join.
            counter: where forwards are counted.
            capacity: most slots per row, scratch included; 0 = as many as the pool has.
        """
        from outpace.cache.paged import PagedCache

        return PagedCache(self, [Table(self) for _ in range(rows)], counter, limit=capacity)

    def _collect(self) -> None:
        while self._dropped:
            self.drop(self._dropped.popleft())


class Table:
    """The pages of one row, in order. It holds them, and drops them when nothing refers to it any more.

    Args:
        pool: where they lie.
        numbers: pages that are held already, on its behalf.
    """

    __slots__ = ("numbers", "pool")

    def __init__(self, pool: Pages, numbers: Sequence[int] = ()) -> None:
        self.pool, self.numbers = pool, array("q", numbers)

    def __del__(self) -> None:
        if self.numbers:
            self.pool.drop_later(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def shared(self) -> Table:
        """Return another table of the same pages."""
        self.pool.hold(self.numbers)
        return Table(self.pool, self.numbers)

    def trim(self, count: int) -> None:
        """Drop all pages but the first `count`."""
        if count < len(self.numbers):
            self.pool.drop(self.numbers[count:])
            del self.numbers[count:]
