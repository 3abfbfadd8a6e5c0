"""The pages of an engine's rows: what they take, what earlier texts left in them, and who has to give some back."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from pathlib import Path

from outpace.cache import Cache, PagedCache, Pages, Prefixes, Saved
from outpace.run.loop import Run
from outpace.run.prefill import next_pieces
from outpace.run.row import Row
from outpace.types import Adapter

__all__ = ["Memory", "new_memory"]

_SHARE = 0.5  # of the memory that is free, where nobody says how many tokens the cache shall hold


def new_memory(target: Adapter, tokens: int, rows: int, chunk: int) -> Memory | None:
    """Return pages for `tokens` tokens (0 = as many as `rows` texts may have, within half of the free memory).

    None where the model cannot read pages.
    """
    one = target.new_pool(1)
    if one is None:
        return None
    if not tokens:
        tokens = min(rows * target.capabilities.max_positions, _free_bytes(target) // one.page_bytes * one.page_size)
    pages = target.new_pool(max(1, -(-tokens // one.page_size)), one.page_size)
    return None if pages is None else Memory(target, pages, chunk)


def _free_bytes(target: Adapter) -> int:
    if target.device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(target.device)[0] * _SHARE)
    try:  # what the system would give, files that it holds in memory included
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(free * _SHARE)


class Memory:
    """The pool of a run whose rows come and go.

    Args:
        target: whose entries lie in the pages.
        pages: the pool.
        chunk: where a target's results depend on how a prompt is cut, it is cut at multiples of this.
    """

    def __init__(self, target: Adapter, pages: Pages, chunk: int) -> None:
        self.pages, self.prefixes, self._chunk = pages, Prefixes(pages), chunk
        self._is_free = target.is_invariant
        self._has_turns = target.capabilities.turns_at > 0  # entries then depend on how long a text is
        self._keys: dict[Row, Hashable] = {}
        self._saved: dict[Row, Saved] = {}

    @property
    def num_slots(self) -> int:
        """Tokens that the pages hold."""
        return self.pages.num_pages * self.pages.page_size

    def begin(self, row: Row, key: Hashable) -> int:
        """Look for what a row that joins begins with; return how many of its tokens need not be read.

        Args:
            row: `row.cached` is set.
            key: whose texts it may share; None = nobody's, and nobody shares it.
        """
        if key is None or self._has_turns or row in self._saved:
            return 0
        self._keys[row] = key
        length, table = self.prefixes.match(key, row.tokens[:-1])
        if not self._is_free:
            length -= length % self._chunk
        if length:
            row.cached = (table, length)  # the table holds the pages until the row does
        return length

    def store(self, row: Row, cache: Cache, place: int) -> None:
        """Keep what was read of a row for others, who may begin with it; while the row's entries are held."""
        if (key := self._keys.get(row)) is None or not isinstance(cache, PagedCache):
            return
        length = cache.lengths[place] if self._is_free else min(cache.lengths[place], row.num_prompt)
        self.prefixes.insert(key, row.tokens[:length], cache.row_tables[place])

    def forget(self, row: Row) -> None:
        """Let go of a row that has ended."""
        self._keys.pop(row, None)
        self._saved.pop(row, None)
        row.cached = None

    def save(self, row: Row, cache: Cache, place: int) -> None:
        """Put a row's entries aside that has to leave for a while, where reading them anew would round otherwise."""
        if not self._is_free and isinstance(cache, PagedCache) and cache.lengths[place]:
            self._saved[row] = cache.save(place)

    def restore(self, row: Row, run: Run) -> None:
        """Fill in what was put aside of a row that has joined again.

        Raises:
            NoPages: there are too few.
        """
        if row in self._saved:
            cache = run.batch.cache
            assert isinstance(cache, PagedCache)  # it was when the row left
            cache.load(run.rows.index(row), self._saved[row])
            del self._saved[row]

    def is_shared(self, row: Row, other: Row, key: Hashable, known: int) -> bool:
        """Return whether a row that is being read will leave a page for another one that is not known yet."""
        size = known - known % self.pages.page_size + (self.pages.page_size if self._is_free else self._chunk)
        mine, others = row.tokens[: min(size, len(row.tokens) - 1)], other.tokens[: other.num_prompt]
        return self._keys.get(other) == key and len(mine) == size and others[:size] == mine

    # Room

    def has(self, count: int) -> bool:
        """Return whether so many pages are free, or can be had from texts that have ended."""
        if (short := count - self.pages.num_free) > 0:
            self.prefixes.evict(short)
        return count <= self.pages.num_free

    def new(self, most: int, known: int) -> int:
        """Return how many pages a row takes that begins, for `most` entries of which `known` are in the cache."""
        return self.pages.needed(most, known // self.pages.page_size) + 1

    def missing(self, run: Run, most: Sequence[int]) -> int:
        """Return how many pages the rows of a run have yet to take before each has so many entries."""
        cache = run.batch.cache
        if not isinstance(cache, PagedCache):
            return 0
        tables = cache.row_tables
        return sum(self.pages.needed(size, len(table)) for size, table in zip(most, tables, strict=True))

    def needed(self, run: Run, width: int, budget: int) -> int:
        """Return how many pages the next step may take, for windows of up to `width` nodes."""
        cache, first = run.batch.cache, len(run.batch.rows)
        if not isinstance(cache, PagedCache):
            return 0
        rows, waiting = run.batch.rows, run.batch.waiting
        sizes = [len(row.tokens) - held + width for row, held in zip(rows, cache.lengths, strict=False)]
        texts, held = [row.tokens for row in waiting], cache.lengths[first:]
        pieces = next_pieces(texts, held, max(budget, 0 if first else 1), self._chunk, is_free=self._is_free)
        # Of those in line some may begin in the same step.
        return cache.needed([*sizes, *(len(piece) + 1 + width for piece in pieces)])

    def count(self, run: Run | None) -> int:
        """Return how many pages the rows of a run hold, each counted once."""
        cache = None if run is None else run.batch.cache
        return len({page for table in cache.row_tables for page in table}) if isinstance(cache, PagedCache) else 0
