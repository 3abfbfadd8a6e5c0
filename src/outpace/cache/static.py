"""The static cache: one buffer per stored tensor, a length per row, scratch slots behind it.

Slot = logical position for valid entries: row b holds entries 0..lengths[b]-1. A forward stages its T entries at
slots lengths[b]..lengths[b]+T-1 without touching valid ones; `keep` makes some of them valid. A chain is kept without
a copy, a tree path with one gather. Buffers may begin smaller than the capacity and double as texts grow, so that a
long context costs memory only once it is used.

To a model every cache looks alike: `stage` makes room for a forward, then entries are found by `tables` (compiled
kernels) or lie side by side in `dense` (all others).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from outpace.cache.counter import Counter
from outpace.errors import ConfigError

__all__ = ["FIRST_SLOTS", "Cache", "joined_origins", "spread", "stacked"]

Each = TypeVar("Each")


FIRST_SLOTS = 1024  # per row, of a cache that grows


class Cache:
    """Entries of several rows in buffers.

    Args:
        buffers: storage tensors with rows on axis 0 and slots on axis `slot_axis`; e.g. per layer two of
            [B, H, capacity, D]. What they hold is the adapter's business.
        slot_axis: the axis of every buffer that counts slots.
        counter: where forwards on this cache are counted.
        extra: tensors or trees per row that never grow (encoder outputs), gathered by `rows`.
        limit: slots per row that `reserve` may grow the buffers to; 0 = they are as large as they get.

    Attributes:
        phases: per row, how its positions turn; 0 = as those of a short text, see `Capabilities.turns_at`.
        origins: per row, a number that rows with the same `extra` share; empty = it is not known who does.
    """

    origins: tuple[int, ...] = ()

    def __init__(
        self,
        buffers: Sequence[Tensor],
        slot_axis: int,
        counter: Counter | None = None,
        lengths: list[int] | None = None,
        extra: Sequence[Tensor] = (),
        limit: int = 0,
    ) -> None:
        self.buffers = list(buffers)
        self.limit = limit
        self.slot_axis = slot_axis
        self.counter = counter if counter is not None else Counter()
        self.lengths = lengths if lengths is not None else [0] * (self.buffers[0].shape[0] if self.buffers else 0)
        self.extra = list(extra)
        self.phases = [0] * len(self.lengths)
        self._num_staged = 0  # entries of the last forward, at the most
        self.has_fixed_extent = False  # attend over all slots, so that sums have one shape (batch-invariant mode)

    @property
    def device(self) -> torch.device:
        """Where entries lie, and where tokens are laid out for them; a cache without buffers stands on the CPU."""
        return self.buffers[0].device if self.buffers else torch.device("cpu")

    @property
    def capacity(self) -> int:
        """Slots per row that there may be, scratch included."""
        return max(self.limit, self.slots)

    @property
    def slots(self) -> int:
        """Slots per row that there are now."""
        return self.buffers[0].shape[self.slot_axis]

    def reserve(self, slots: int) -> None:
        """Grow the buffers to at least this many slots per row, by doubling, within the capacity."""
        held = self.slots
        if slots <= held or held >= self.limit:
            return
        size, axis = min(self.limit, max(slots, 2 * held)), self.slot_axis
        for index, buffer in enumerate(self.buffers):
            shape = list(buffer.shape)
            shape[axis] = size - held
            self.buffers[index] = torch.cat([buffer, buffer.new_zeros(shape)], axis)

    def restart(self, row: int, phase: int) -> None:
        """Forget a row's entries, to read its text anew in another phase."""
        self.lengths[row], self.phases[row] = 0, phase

    def check_room(self, size: int) -> None:
        """Refuse a forward of `size` tokens that does not fit.

        Raises:
            ConfigError: it would pass the capacity.
        """
        longest = max(self.lengths, default=0)
        if longest + size > self.capacity:
            raise ConfigError(
                f"{size} tokens do not fit behind {longest} entries in a cache of {self.capacity} slots.",
                "Ask new_cache for a larger capacity: final tokens plus the widest forward.",
            )

    def stage(self, position: Tensor) -> None:
        """Make room for a forward's tokens behind the valid entries.

        Args:
            position: [B, T] int64 of the forward, -1 = padding, whose entries nobody reads.

        Raises:
            NoPages: of a cache on pages, none of which is free; nothing has changed then.
        """
        self._num_staged = position.shape[1]
        self.reserve(max(self.lengths, default=0) + self._num_staged)

    @property
    def page_size(self) -> int:
        """Slots that lie side by side; of a static cache, all of a row."""
        return self.slots

    def tables(self) -> list[array[int]]:
        """Return per row the indices on axis 0 of the buffers where its slots lie, `page_size` slots each.

        They are int64, to be read in place, and hold until the cache changes.
        """
        return [array("q", (row,)) for row in range(len(self.lengths))]

    @contextmanager
    def dense(self, size: int) -> Iterator[Cache]:
        """Lend a cache with these rows whose buffers are [B, ...], for a forward of `size` tokens.

        What the forward stages there is staged here when the block ends. A static cache lends itself.
        """
        del size
        yield self

    @contextmanager
    def dense_rows(self, rows: Sequence[int], size: int) -> Iterator[Cache]:
        """As `dense`, of some rows."""
        from outpace.cache.part import beside

        with beside(self, rows, size) as lent:
            yield lent

    @contextmanager
    def aside(self, lengths: Sequence[int], size: int, counter: Counter) -> Iterator[Cache]:
        """Lend the first `lengths[b]` entries of each row, for one forward of `size` tokens behind them.

        Valid entries that the forward writes over are as they were when the block ends.
        """
        self.reserve(max(self.lengths) + size)  # before it is shared
        fork = self.fork(counter)
        fork.truncate(lengths)
        low, high = min(fork.lengths), max(fork.lengths) + size
        kept = [buffer.narrow(self.slot_axis, low, high - low).clone() for buffer in self.buffers]
        try:
            yield fork
        finally:
            for buffer, own in zip(self.buffers, kept, strict=True):
                buffer.narrow(self.slot_axis, low, high - low).copy_(own)

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers in bytes."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers)

    def keep(self, staged: Sequence[Sequence[int]]) -> None:
        """Make staged entries valid, in the given order.

        Args:
            staged: per row, offsets into the last forward's tokens (0 = the first staged entry).
        """
        moves = [(row, offsets) for row, offsets in enumerate(staged) if any(o != i for i, o in enumerate(offsets))]
        for row, offsets in moves:
            # Offsets ascend along a path, so gathering before writing is the only care needed.
            base = self.lengths[row]
            source = torch.tensor([base + offset for offset in offsets], device=self.device)
            for buffer in self.buffers:
                entries = buffer[row]
                picked = entries.index_select(self.slot_axis - 1, source)
                entries.narrow(self.slot_axis - 1, base, len(offsets)).copy_(picked)
        for row, offsets in enumerate(staged):
            self.lengths[row] += len(offsets)

    def retain(self, slots: Sequence[Sequence[int]]) -> None:
        """Make the given slots valid, in that order, and forget all others.

        Args:
            slots: per row, ascending; 0 to L - 1 are the L entries valid now, L + i is the i-th staged one.
        """
        for row, chosen in enumerate(slots):
            still = next((i for i, slot in enumerate(chosen) if slot != i), len(chosen))
            if still < len(chosen):
                source = torch.tensor(chosen[still:], device=self.device)
                for buffer in self.buffers:
                    picked = buffer[row].index_select(self.slot_axis - 1, source)
                    buffer[row].narrow(self.slot_axis - 1, still, len(chosen) - still).copy_(picked)
            self.lengths[row] = len(chosen)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget entries at and beyond `lengths[b]` (a rollback; never lengthens)."""
        self.lengths = [min(old, new) for old, new in zip(self.lengths, lengths, strict=True)]

    def keep_rows(self, rows: Sequence[int], staged: Sequence[Sequence[int]]) -> None:
        """As `keep`, of some rows; what others staged stays staged."""
        self.keep(spread(rows, staged, [()] * len(self.lengths)))

    def retain_rows(self, rows: Sequence[int], slots: Sequence[Sequence[int]]) -> None:
        """As `retain`, of some rows; what others staged stays staged."""
        self.retain(spread(rows, slots, [range(length) for length in self.lengths]))

    def truncate_rows(self, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """As `truncate`, of some rows; what others staged stays staged."""
        self.truncate(spread(rows, lengths, self.lengths))

    def fork(self, counter: Counter | None = None) -> Cache:
        """Return an overlay that reads the valid entries and stages its own in the same scratch slots.

        The base must not score while the fork is in use: whatever the fork staged is overwritten by it, which is
        exactly what drafting on the target's own cache wants, and costs no copy.
        """
        return self._derive(self.buffers, range(len(self.lengths)), self.extra, counter or Counter())

    def rows(self, index: Sequence[int]) -> Cache:
        """Return a copy with the given rows, in that order (rows may repeat)."""
        if not self.buffers:
            return self._derive([], index, [])
        gather = torch.tensor(list(index), dtype=torch.int64, device=self.device)
        buffers = [buffer.index_select(0, gather) for buffer in self.buffers]
        extra = [tensor.index_select(0, gather) for tensor in self.extra]
        return self._derive(buffers, index, extra)

    def follow(self, source: Sequence[int]) -> None:
        """Let row i go on from row `source[i]`, in place (rows may repeat); staged entries go with their rows.

        Rows that stay where they are cost nothing, the others as much as they hold.
        """
        moved = [row for row, old in enumerate(source) if old != row]
        if not moved:
            return
        olds = [source[row] for row in moved]
        used = min(self.slots, max(self.lengths[old] for old in olds) + self._num_staged)
        to, come = (torch.tensor(rows, dtype=torch.int64, device=self.device) for rows in (moved, olds))
        for buffer in self.buffers:
            entries = buffer.narrow(self.slot_axis, 0, used)
            entries.index_copy_(0, to, entries.index_select(0, come))
        if not self.has_same_extra(source):  # rows that fork read one source: nothing of it is moved
            order = torch.tensor(list(source), dtype=torch.int64, device=self.device)
            self.extra = [tensor.index_select(0, order) for tensor in self.extra]
        self.lengths = [self.lengths[old] for old in source]
        self.phases = [self.phases[old] for old in source]
        self.origins = tuple(self.origins[old] for old in source) if self.origins else ()

    def has_same_extra(self, source: Sequence[int]) -> bool:
        """Return whether `extra` is known to stay as it is where row i goes on from row `source[i]`."""
        return bool(self.origins) and tuple(self.origins[row] for row in source) == self.origins

    def part(self, index: Sequence[int]) -> Cache:
        """Return a view of some rows, none twice: what is staged and kept there is staged and kept here.

        It holds as long as no row joins or leaves. Where the rows are neighbours a forward on it copies nothing, nor
        does one by compiled kernels; others copy the rows' entries.
        """
        from outpace.cache.part import Part

        return Part(self, index)

    def lend(self, buffers: Sequence[Tensor], index: Sequence[int]) -> Cache:
        """Return a static cache of some rows over other buffers, which hold their entries."""
        return self._derive(buffers, index, self.extra_of(index))

    def extra_of(self, index: Sequence[int]) -> list[Tensor]:
        """Return `extra` of some rows; of all in their order without a copy."""
        if list(index) == list(range(len(self.lengths))):
            return self.extra
        return [tensor[list(index)] for tensor in self.extra]

    def take_back(self, lent: Cache, index: Sequence[int]) -> None:
        """Take over what a forward on a cache from `lend` changed beside the buffers."""

    def recall(self, texts: Sequence[Sequence[int]]) -> list[int]:
        """Begin empty rows with entries of their texts that are known; return the rows that were empty: here none."""
        del texts
        return []

    def remember(self, rows: Sequence[int], texts: Sequence[Sequence[int]]) -> None:
        """Let others begin with what is valid of some rows; here nobody can."""

    def read(self, row: int, slots: Sequence[int]) -> list[Tensor]:
        """Return copies of entries of a row, slots first: per buffer [len(slots), ...]."""
        chosen, axis = torch.tensor(slots, dtype=torch.int64, device=self.device), self.slot_axis - 1
        return [buffer[row].index_select(axis, chosen).movedim(axis, 0) for buffer in self.buffers]

    def write(self, row: int, first: int, entries: Sequence[Tensor]) -> None:
        """Write entries, as `read` returns them, to the slots of a row from `first` on."""
        for buffer, new in zip(self.buffers, entries, strict=True):
            buffer[row].movedim(self.slot_axis - 1, 0)[first : first + len(new)] = new

    def leave(self, stay: Sequence[int]) -> None:
        """Keep the given rows, in that order, in place; a row that stays where it is costs nothing.

        Args:
            stay: rows, none twice; a row may only move to the place of one that goes.
        """
        for new, old in enumerate(stay):
            if new != old:
                used = self.lengths[old]
                for buffer in self.buffers:
                    axis = self.slot_axis - 1
                    buffer[new].narrow(axis, 0, used).copy_(buffer[old].narrow(axis, 0, used))
        self.buffers = [buffer[: len(stay)] for buffer in self.buffers]
        if self.extra:
            gather = torch.tensor(list(stay), dtype=torch.int64, device=self.extra[0].device)
            self.extra = [tensor.index_select(0, gather) for tensor in self.extra]
        self.lengths = [self.lengths[i] for i in stay]
        self.phases = [self.phases[i] for i in stay]
        self.origins = self._origins_of(stay)

    def _derive(
        self, buffers: Sequence[Tensor], index: Sequence[int], extra: Sequence[Tensor], counter: Counter | None = None
    ) -> Cache:
        """Return a cache of the same kind over other buffers, its rows in the order of `index`."""
        lengths = [self.lengths[i] for i in index]
        cache = Cache(buffers, self.slot_axis, counter or self.counter, lengths, extra, self.limit)
        cache.phases = [self.phases[i] for i in index]
        cache.has_fixed_extent = self.has_fixed_extent
        cache.origins = self._origins_of(index)
        return cache

    def _origins_of(self, index: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.origins[row] for row in index) if self.origins else ()

    @staticmethod
    def join(caches: Sequence[Cache]) -> Cache:
        """Stack the rows of several caches of one adapter; capacities may differ, and widths that hang on a source."""
        caches = [cache.owned() for cache in [cache for cache in caches if cache.lengths] or caches[:1]]
        return caches[0] if len(caches) == 1 else caches[0]._joined(caches)

    def owned(self) -> Cache:
        """Return a cache whose rows are its own: this one, or of a view a copy."""
        return self

    def _joined(self, caches: Sequence[Cache]) -> Cache:
        first = self
        buffers = []
        for parts in zip(*(cache.buffers for cache in caches), strict=True):
            longest = (max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True))
            joined, row = parts[0].new_zeros(sum(len(part) for part in parts), *longest), 0
            for part in parts:
                joined[(slice(row, row + len(part)), *map(slice, part.shape[1:]))] = part
                row += len(part)
            buffers.append(joined)
        extra = [stacked(parts) for parts in zip(*(cache.extra for cache in caches), strict=True)]
        joined = first._derive(buffers, (), extra)
        joined.lengths = [length for cache in caches for length in cache.lengths]
        joined.phases = [phase for cache in caches for phase in cache.phases]
        joined.limit = max(cache.limit for cache in caches)
        joined.origins = joined_origins(caches)
        joined._adopt(caches)
        return joined

    def _adopt(self, parts: Sequence[Cache]) -> None:
        """Take over what joined caches hold beside buffers."""


def spread(rows: Sequence[int], values: Sequence[Each], others: Sequence[Each]) -> list[Each]:
    """Return a value for every row of a cache: those given for some rows, and what the others have."""
    whole = list(others)
    for row, value in zip(rows, values, strict=True):
        whole[row] = value
    return whole


def joined_origins(caches: Sequence[Cache]) -> tuple[int, ...]:
    """Return the origins of the rows of several caches; empty where one of them knows none."""
    is_known = all(len(cache.origins) == len(cache.lengths) for cache in caches)
    return tuple(number for cache in caches for number in cache.origins) if is_known else ()


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate on axis 0, padding axis 1 with zeros to the longest."""
    longest = max(part.shape[1] for part in parts)
    padded = [torch.nn.functional.pad(p, [0, 0] * (p.dim() - 2) + [0, longest - p.shape[1]]) for p in parts]
    return torch.cat(padded)
