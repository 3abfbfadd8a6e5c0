"""The paged cache: rows of pages out of one pool, shared where rows have entries in common.

It does what the static cache does, entry for entry, but a row takes memory only for what it holds, a copy of a row
takes none until one of the two writes, and rows join and leave without moving anything. Memory may run out: whatever
needs pages raises `NoPages` before it writes.
"""

from __future__ import annotations

from array import array
from collections import Counter as Count
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outpace.cache.counter import Counter
from outpace.cache.pages import Pages, Table
from outpace.cache.static import Cache, joined_origins, spread, stacked
from outpace.errors import ConfigError

if TYPE_CHECKING:
    from outpace.cache.prefixes import Prefixes

__all__ = ["PagedCache", "Saved"]


@dataclass(frozen=True, slots=True)
class Saved:
    """A row's entries in host memory.

    Attributes:
        entries: per buffer [length, ...].
        length: valid entries.
        phase: how its positions turn.
    """

    entries: list[Tensor]
    length: int
    phase: int


class PagedCache(Cache):
    """Entries of several rows in pages; made by `Pages.new_cache`.

    Args:
        pages: the pool.
        rows: a table per row.
        counter: where forwards on this cache are counted.
        lengths: valid entries per row.
        extra: tensors per row that never grow.
        limit: most slots per row; 0 = as many as the pool has.

    Attributes:
        row_tables: per row, its pages.
        prefixes: where rows of a drafting model find what was read before, and under which key; None = nowhere. Those
            of a target are looked up by whoever lets them join.
    """

    def __init__(
        self,
        pages: Pages,
        rows: Sequence[Table],
        counter: Counter | None = None,
        lengths: Sequence[int] = (),
        extra: Sequence[Tensor] = (),
        limit: int = 0,
    ) -> None:
        limit = limit or pages.num_pages * pages.page_size
        super().__init__(pages.buffers, pages.slot_axis, counter, list(lengths) or [0] * len(rows), extra, limit)
        self.pages, self.row_tables = pages, list(rows)
        self._is_overlay, self._ends = False, list(self.lengths)
        self.prefixes: tuple[Prefixes, Hashable] | None = None

    @property
    def device(self) -> torch.device:
        """Where the pages lie."""
        return self.pages.device

    @property
    def capacity(self) -> int:
        """Most slots per row; the pool may have fewer free."""
        return self.limit

    @property
    def slots(self) -> int:
        """Most slots per row: there is nothing to grow."""
        return self.limit

    @property
    def page_size(self) -> int:
        """Slots of a page."""
        return self.pages.page_size

    @property
    def num_bytes(self) -> int:
        """Memory of the pages that the rows hold, each counted once."""
        return len({page for table in self.row_tables for page in table}) * self.pages.page_bytes

    def tables(self) -> list[array[int]]:
        """Return the pages of each row."""
        return [table.numbers for table in self.row_tables]

    def reserve(self, slots: int) -> None:
        """Do nothing: pages are taken when they are staged in."""
        del slots

    def needed(self, sizes: Sequence[int], is_forked: bool = False) -> int:
        """Return how many pages have to be free so that each row can stage `sizes[b]` entries.

        Args:
            sizes: entries per row.
            is_forked: rows are to go on from each other (`follow`), so that each may have to copy what is staged.
        """
        plan = self._plan(self.lengths, [length + size for length, size in zip(self.lengths, sizes, strict=True)])
        if not is_forked:
            return len(plan)
        ends = zip(self.lengths, sizes, strict=True)
        return len(plan) + sum(-(-(length + n) // self.page_size) - length // self.page_size for length, n in ends)

    def stage(self, position: Tensor) -> None:
        """Make room for the real tokens of a forward, and pages that others hold too this row's own.

        Raises:
            NoPages: there are too few free pages; nothing has changed.
        """
        steps = torch.arange(1, position.shape[1] + 1, device=position.device)
        sizes = ((position >= 0) * steps).amax(1).tolist() if position.shape[1] else [0] * len(self.lengths)
        ends = [length + size for length, size in zip(self.lengths, sizes, strict=True)]
        self._own(self.lengths, ends)
        self._ends = ends

    @contextmanager
    def dense(self, size: int) -> Iterator[Cache]:
        """Lend a static cache with copies of all entries."""
        with self.dense_rows(range(len(self.lengths)), size) as lent:
            yield lent

    @contextmanager
    def dense_rows(self, rows: Sequence[int], size: int) -> Iterator[Cache]:
        """As `dense`, of some rows."""
        tables, lengths = [self.row_tables[row].numbers for row in rows], [self.lengths[row] for row in rows]
        extent = self.capacity if self.has_fixed_extent else max(lengths, default=0) + size
        stacks = self.pages.gather(tables, lengths, extent)
        yield self.lend([buffer for stack in stacks for buffer in stack], rows)
        # Padding is staged there too; in its place here others may have entries.
        ends = enumerate(zip(lengths, (self._ends[row] for row in rows), strict=True))
        staged = [(place, slot) for place, (length, end) in ends for slot in range(length, end)]
        if staged:
            places, slots = torch.tensor(staged, device=self.device).unbind(1)
            new = [stack.movedim(self.slot_axis + 1, 2)[:, places, slots] for stack in stacks]
            self.pages.write([(tables[place], slot) for place, slot in staged], new)

    def lend(self, buffers: Sequence[Tensor], index: Sequence[int]) -> Cache:
        """Return a static cache of some rows over buffers that hold their entries."""
        lengths, extra = [self.lengths[row] for row in index], self.extra_of(index)
        lent = Cache(buffers, self.slot_axis, self.counter, lengths, extra, self.limit)
        lent.phases, lent.has_fixed_extent = [self.phases[row] for row in index], self.has_fixed_extent
        return lent

    @contextmanager
    def aside(self, lengths: Sequence[int], size: int, counter: Counter) -> Iterator[Cache]:
        """Lend the first entries of each row on pages that are copied where they are written to."""
        del size
        copy = self.rows(range(len(self.lengths)))
        copy.counter = counter
        copy.truncate(lengths)
        yield copy

    def restart(self, row: int, phase: int) -> None:
        """Forget a row's entries, to read its text anew in another phase."""
        super().restart(row, phase)
        self._trim([row])

    def keep(self, staged: Sequence[Sequence[int]]) -> None:
        """Make staged entries valid, in the given order.

        Raises:
            NoPages: entries move within pages that other rows hold too, and there are too few free ones to copy them;
                nothing has changed. `needed` tells beforehand.
        """
        self.keep_rows(range(len(self.lengths)), staged)

    def keep_rows(self, rows: Sequence[int], staged: Sequence[Sequence[int]]) -> None:
        """As `keep`, of some rows."""
        starts, tails = [], []
        for row, offsets in zip(rows, staged, strict=True):
            still = next((i for i, offset in enumerate(offsets) if offset != i), len(offsets))
            starts.append(self.lengths[row] + still)
            tails.append([self.lengths[row] + offset for offset in offsets[still:]])
        self._move(rows, starts, tails)

    def retain(self, slots: Sequence[Sequence[int]]) -> None:
        """Make the given slots valid, in that order, and forget all others.

        Raises:
            NoPages: as of `keep`.
        """
        self.retain_rows(range(len(self.lengths)), slots)

    def retain_rows(self, rows: Sequence[int], slots: Sequence[Sequence[int]]) -> None:
        """As `retain`, of some rows."""
        still = [next((i for i, slot in enumerate(chosen) if slot != i), len(chosen)) for chosen in slots]
        self._move(rows, still, [list(chosen[same:]) for chosen, same in zip(slots, still, strict=True)])

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget entries at and beyond `lengths[b]`."""
        self.truncate_rows(range(len(self.lengths)), lengths)

    def truncate_rows(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """As `truncate`, of some rows."""
        self._set_lengths(rows, [min(self.lengths[row], new) for row, new in zip(rows, lengths, strict=True)])

    def fork(self, counter: Counter | None = None) -> PagedCache:
        """Return an overlay on the same tables: it stages in the pages that the base's next forward will use."""
        overlay = self._made(self.row_tables, range(len(self.lengths)), counter or Counter())
        overlay._is_overlay = True
        return overlay

    def rows(self, index: Sequence[int]) -> PagedCache:
        """Return a copy with the given rows, in that order (rows may repeat), that shares all pages."""
        return self._made([self.row_tables[row].shared() for row in index], index, self.counter)

    def follow(self, source: Sequence[int]) -> None:
        """Let row i go on from row `source[i]`, in place."""
        self._become([self.row_tables[row].shared() for row in source], source)

    def leave(self, stay: Sequence[int]) -> None:
        """Keep the given rows, in that order; nothing is moved."""
        self._become([self.row_tables[row] for row in stay], stay)

    def attach(self, row: int, table: Iterable[int], length: int) -> None:
        """Begin an empty row with entries that others hold too; a partly filled last page is copied when written to.

        Args:
            row: which holds nothing.
            table: pages that somebody holds, e.g. what `Prefixes.match` found; as many as the entries need are taken.
            length: valid entries in them.

        Raises:
            ConfigError: the row is not empty, or the pages are too few.
        """
        numbers = list(table)[: self.pages.needed(length)]
        if self.lengths[row] or len(numbers) < self.pages.needed(length):
            raise ConfigError(f"{length} entries in {len(numbers)} pages cannot begin row {row}.")
        self.pages.hold(numbers)
        self.row_tables[row] = Table(self.pages, numbers)
        self.lengths = [length if at == row else old for at, old in enumerate(self.lengths)]

    def recall(self, texts: Sequence[Sequence[int]]) -> list[int]:
        """Begin empty rows with what was read of their texts before; return the rows that were empty."""
        if self.prefixes is None:
            return []
        (known, key), empty = self.prefixes, [row for row, length in enumerate(self.lengths) if not length]
        for row in empty:
            length, table = known.match(key, texts[row][:-1])
            if length:
                self.attach(row, table, length)
        return empty

    def remember(self, rows: Sequence[int], texts: Sequence[Sequence[int]]) -> None:
        """Keep what is valid of some rows for others."""
        if self.prefixes is not None:
            known, key = self.prefixes
            for row in rows:
                known.insert(key, texts[row][: self.lengths[row]], self.row_tables[row])

    def save(self, row: int) -> Saved:
        """Return a row's entries in host memory; let the row leave, and its pages are free for others."""
        length = self.lengths[row]
        return Saved([entries.cpu() for entries in self.read(row, range(length))], length, self.phases[row])

    def load(self, row: int, saved: Saved) -> None:
        """Fill an empty row with what was saved of one.

        Raises:
            ConfigError: the row is not empty.
            NoPages: there are too few free pages; nothing has changed.
        """
        if self.lengths[row]:
            raise ConfigError(f"Row {row} of the cache is not empty.")
        ends = [saved.length if at == row else length for at, length in enumerate(self.lengths)]
        self._own(self.lengths, ends)
        self.write(row, 0, [entries.to(self.device) for entries in saved.entries])
        self.lengths = ends
        self.phases = [saved.phase if at == row else phase for at, phase in enumerate(self.phases)]

    def read(self, row: int, slots: Sequence[int]) -> list[Tensor]:
        """Return copies of entries of a row, slots first."""
        table = self.row_tables[row].numbers
        return [buffer for stack in self.pages.read([(table, slot) for slot in slots]) for buffer in stack]

    def write(self, row: int, first: int, entries: Sequence[Tensor]) -> None:
        """Write entries to the slots of a row from `first` on, whose pages are its own."""
        table, rest = self.row_tables[row].numbers, iter(entries)
        stacked = [torch.stack([next(rest) for _ in range(count)]) for count in self.pages.counts]
        self.pages.write([(table, slot) for slot in range(first, first + len(entries[0]))], stacked)

    # Pages

    def _plan(
        self, starts: Sequence[int], ends: Sequence[int], rows: Sequence[int] = ()
    ) -> list[tuple[int, int, bool]]:
        """Return every page to be taken so that slots starts[i]..ends[i]-1 are the own ones of row rows[i] (() = all).

        Each as (row, place in its table, whether something before the slots is in it).
        """
        plan, left = [], Count[int]()  # left: pages that rows before this one will have left to the others
        for row, start, end in zip(rows or range(len(starts)), starts, ends, strict=True):
            table = self.row_tables[row].numbers
            for at in range(start // self.page_size, -(-end // self.page_size) if end > start else 0):
                if at >= len(table):
                    plan.append((row, at, at * self.page_size < start))
                elif self.pages.uses(table[at]) - left[table[at]] > 1:
                    left[table[at]] += 1
                    plan.append((row, at, at * self.page_size < start))
        return plan

    def _own(self, starts: Sequence[int], ends: Sequence[int], rows: Sequence[int] = ()) -> None:
        """Make slots writable, as `_plan` takes them; what lies before them stays."""
        plan = self._plan(starts, ends, rows)
        if not plan:
            return
        fresh, moves = self.pages.take(len(plan)), list[tuple[int, int]]()
        for (row, at, is_begun), page in zip(plan, fresh, strict=True):
            table = self.row_tables[row].numbers
            if at == len(table):
                table.append(page)
                continue
            if is_begun:
                moves.append((table[at], page))
            self.pages.drop([table[at]])
            table[at] = page
        self.pages.copy([old for old, _ in moves], [new for _, new in moves])

    def _move(self, rows: Sequence[int], starts: Sequence[int], tails: Sequence[Sequence[int]]) -> None:
        """Make the entries before starts[i], and behind them those at slots tails[i], the valid ones of row rows[i]."""
        tables = [self.row_tables[row].numbers for row in rows]
        ends = [start + len(tail) for start, tail in zip(starts, tails, strict=True)]
        sources = [(table, slot) for table, tail in zip(tables, tails, strict=True) for slot in tail]
        entries = self.pages.read(sources) if sources else []  # before anything is written, as slots may cross
        self._own(starts, ends, rows)
        if sources:
            places = zip(tables, starts, ends, strict=True)
            self.pages.write([(table, slot) for table, start, end in places for slot in range(start, end)], entries)
        self._set_lengths(rows, ends)

    def _set_lengths(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        self.lengths = spread(rows, lengths, self.lengths)
        self._trim(rows)

    def _trim(self, rows: Sequence[int]) -> None:
        """Drop scratch pages. An overlay has none of its own: its base stages in them next."""
        if not self._is_overlay:
            for row in rows:
                self.row_tables[row].trim(self.pages.needed(self.lengths[row]))

    def _made(self, tables: Sequence[Table], index: Sequence[int], counter: Counter) -> PagedCache:
        extra = [tensor[list(index)] for tensor in self.extra]
        cache = PagedCache(self.pages, tables, counter, [self.lengths[row] for row in index], extra, self.limit)
        cache.phases = [self.phases[row] for row in index]
        cache.has_fixed_extent, cache.prefixes = self.has_fixed_extent, self.prefixes
        cache.origins = self._origins_of(index)
        return cache

    def _become(self, tables: list[Table], index: Sequence[int]) -> None:
        self.row_tables = tables
        if not self.has_same_extra(index):
            self.extra = [tensor[list(index)] for tensor in self.extra]
        self.origins = self._origins_of(index)
        self.lengths, self.phases = [self.lengths[row] for row in index], [self.phases[row] for row in index]

    def _joined(self, caches: Sequence[Cache]) -> Cache:
        parts = [cache for cache in caches if isinstance(cache, PagedCache) and cache.pages is self.pages]
        if len(parts) < len(caches):
            raise ConfigError("Rows on different pages cannot join.", "Make their caches from one pool.")
        joined = self._made([table for part in parts for table in part.row_tables], (), self.counter)
        joined.extra = [stacked(each) for each in zip(*(part.extra for part in parts), strict=True)]
        joined.lengths = [length for part in parts for length in part.lengths]
        joined.phases = [phase for part in parts for phase in part.phases]
        joined.origins = joined_origins(parts)
        joined.limit = max(part.limit for part in parts)
        return joined
