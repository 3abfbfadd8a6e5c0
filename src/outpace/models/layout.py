"""How one forward is laid out: where its tokens go in the cache, how they turn, and what each of them sees.

A layout is made once and only read by every layer. Plain decoding is sliced out of tables; rows of different lengths,
trees and canvases have their masks computed, by tensors alone, so that a device need not be waited for and such a
forward can be recorded. Knows positions, masks and caches. Knows no weights and no arithmetic of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from outpace.cache import Cache
from outpace.errors import ConfigError
from outpace.models.attention import additive, chain_mask, window_mask
from outpace.models.rotation import Rotation, Tables
from outpace.models.spec import Spec

__all__ = ["SMALL_CHAIN", "Layout", "Layouts", "upload"]

SMALL_CHAIN = 64  # chains up to this long read their mask from one precomputed table


@dataclass(slots=True)
class Layout:
    """Where one forward's tokens go and what they see; made once, read by every layer.

    Attributes:
        rows, size: B, T.
        start: the slot of the first token when all rows are equally long, else -1.
        slots: [B, T] slots when rows differ, with `row_index` [B, 1].
        extent: slots in use after staging, over all rows.
        rotation: per frequency set, (cos, sin) broadcast to [B, T, 1, D].
        tables: what `rotation` was gathered from.
        masks: per window size, (first slot looked at, additive mask or None, is_causal).
        query_scale: [1 or B, T, 1, 1] factors on queries, or None where all are 1.
        distance: [1 or B, T, extent] rows of a relative table, where positions are relative.
        sources: per layer the keys and values [B, K, S, D] of what the encoder read.
        source_mask: additive, [B, 1, 1, S], or None where all sources are equally long.
    """

    rows: int
    size: int
    start: int
    extent: int
    slots: Tensor | None = None
    row_index: Tensor | None = None
    rotation: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    tables: list[Tables] = field(default_factory=list)
    masks: dict[int | None, tuple[int, Tensor | None, bool]] = field(default_factory=dict)
    query_scale: Tensor | None = None
    distance: Tensor | None = None
    sources: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    source_mask: Tensor | None = None
    biased: dict[int, Tensor] = field(default_factory=dict)

    def bias(self, table: Tensor, mask: Tensor | None) -> Tensor:
        """Return what a relative table [2R + 1, H] and a mask add to products, [1 or B, H, T, extent]; made once."""
        found = self.biased.get(id(table))
        if found is None:
            assert self.distance is not None
            found = F.embedding(self.distance, table).permute(0, 3, 1, 2)
            found = self.biased[id(table)] = found if mask is None else found + mask
        return found


class Layouts:
    """What lays out the forwards of one decoder, with the tables that they are sliced from.

    Args:
        spec: its shape.
        dtype, device: of the tables.
    """

    def __init__(self, spec: Spec, dtype: torch.dtype, device: torch.device) -> None:
        self.spec = spec
        self.rotation = Rotation(spec, dtype, device)
        self._like = torch.empty(0, dtype=dtype, device=device)
        self._chains: dict[int | None, Tensor] = {}

    def lay(self, position: Tensor, visible: Tensor | None, cache: Cache) -> Layout:
        """Return the layout of a forward; arguments are those of `Adapter.score`."""
        rows, size = position.shape
        lengths = cache.lengths
        is_even = all(length == lengths[0] for length in lengths)
        extent = cache.slots if cache.has_fixed_extent else max(lengths) + size
        # Plain decoding is a chain of one length: all it needs are slices. Everything else has its masks computed.
        layout = Layout(rows, size, lengths[0] if is_even else -1, extent)
        is_chain = visible is None and is_even and not cache.has_fixed_extent and len(set(cache.phases)) == 1
        if is_chain and self.spec.attention in ("causal", "causal-block") and (rows == 1 or size == 1):
            self._lay_chain(layout, cache)
        else:
            held = upload(cache.lengths, position.device)
            self._lay_rows(layout, position, visible, cache, held)
        if self.spec.query_growth:
            layout.query_scale = self._query_scale(position)
        if self.spec.has_cross:
            self._lay_sources(layout, cache.extra)
        return layout

    def lay_fixed(self, position: Tensor, visible: Tensor | None, cache: Cache, held: Tensor, extent: int) -> Layout:
        """Return the layout of a forward over a set number of slots, made by tensors alone.

        Args:
            position, visible, cache: as of `Adapter.score`; of the cache its size and its rows' phases are read.
            held: [B] int64, valid entries per row.
            extent: slots looked at; those that hold nothing are masked.
        """
        rows, size = position.shape
        layout = Layout(rows, size, -1, extent)
        self._lay_rows(layout, position, visible, cache, held)
        if self.spec.query_growth:
            layout.query_scale = self._query_scale(position)
        return layout

    def _query_scale(self, position: Tensor) -> Tensor:
        """Return the factors [B, T, 1, 1] on queries at positions [B, T], computed in float64."""
        periods = (position.clamp(min=0) // self.spec.query_period).double()
        return (1 + self.spec.query_growth * torch.log1p(periods)).to(self._like.dtype)[:, :, None, None]

    def _lay_sources(self, layout: Layout, extra: Sequence[Tensor]) -> None:
        """Lay out what `EncoderDecoder.encode` left: the sources' lengths [B, 1], then per layer keys and values."""
        if not extra:
            raise ConfigError("The cache holds no source.", "Call encode before the first forward.")
        lengths, entries = extra[0], [tensor.transpose(1, 2) for tensor in extra[1:]]
        layout.sources = list(zip(entries[::2], entries[1::2], strict=True))
        longest = extra[1].shape[1]
        if layout.rows > 1 or int(lengths[0, 0]) < longest:  # a device need not be asked about one row in vain
            is_read = torch.arange(longest, device=lengths.device) < lengths
            layout.source_mask = additive(is_read, extra[1])[:, None, None]

    def _lay_chain(self, layout: Layout, cache: Cache) -> None:
        """All rows stage one chain at the same slots: tables and masks are slices, nothing is computed."""
        start, end = layout.start, layout.extent
        tables = self.rotation.tables(end, cache.phases[0])
        layout.rotation = [(cos[start:end, None], sin[start:end, None]) for cos, sin in tables]
        for window in set(self.spec.windows):
            first = 0 if window is None else max(0, start - window + 1)
            is_plain = window is None or window >= end
            # One token sees all before it, and a whole prompt is what torch calls causal: neither needs a mask.
            if layout.size == 1:
                layout.masks[window] = (first, None, False)
            elif start == 0 and is_plain and self.spec.positions != "relative":
                layout.masks[window] = (0, None, True)
            else:
                layout.masks[window] = (first, self._chain_rows(layout.size, start, first, window, cache.slots), False)

        if self.spec.positions == "relative":
            slots = torch.arange(end, device=self._like.device)
            layout.distance = self._distance(slots[None, start:], slots[None])

    def _distance(self, position: Tensor, key_position: Tensor) -> Tensor:
        """Return the rows of relative tables, [B, T, E], for queries at [B, T] and keys at [B, E]."""
        reach = self.spec.relative_distance
        return (position[:, :, None] - key_position[:, None, :]).clamp(-reach, reach) + reach

    def _chain_rows(self, size: int, start: int, first: int, window: int | None, slots: int) -> Tensor:
        """Return the mask [size, start + size - first] of a chain, from the table if it is short."""
        if size > SMALL_CHAIN:
            return chain_mask(size, start, first, window, self._like)
        table = self._chains.get(window)
        if table is None or table.shape[1] < slots + SMALL_CHAIN:
            table = chain_mask(SMALL_CHAIN, slots, 0, window, self._like)
            self._chains[window] = table
        # Row i of the table stands at slot `base` + i; shifting the columns makes it stand at start + i.
        base = table.shape[1] - SMALL_CHAIN
        return table[:size, base - start + first : base + size]

    def _lay_rows(self, layout: Layout, position: Tensor, visible: Tensor | None, cache: Cache, held: Tensor) -> None:
        """Rows of different lengths, trees, canvases: masks are computed, one per window size, by tensors alone.

        Args:
            layout, position, visible, cache: of the forward; of the cache its size and its rows' phases are read.
            held: [B] int64, valid entries per row.
        """
        spec, rows, size = self.spec, layout.rows, layout.size
        device = position.device
        layout.rotation = self._turns(layout, position, cache)
        if layout.start < 0:
            layout.slots = held[:, None] + torch.arange(size, device=device)
            layout.row_index = torch.arange(rows, device=device)[:, None]
        # A window is a distance in positions, not in slots: branches of a tree share positions.
        is_seen, key_position = window_mask(self._tree(position, visible), position, held, layout.extent)
        like = self._like
        for window in set(spec.windows):
            seen = is_seen
            if window is not None:
                seen = is_seen & (position[:, :, None] - key_position[:, None, :] < window)
            layout.masks[window] = (0, additive(seen, like)[:, None], False)
        if spec.positions == "relative":
            layout.distance = self._distance(position, key_position)

    def _turns(self, layout: Layout, position: Tensor, cache: Cache) -> list[tuple[Tensor, Tensor]]:
        """Return cos and sin [B, T, 1, D] per frequency set, each row's by its phase."""
        if not self.spec.ropes:
            return []
        end = self.turning(cache)  # values are not looked at: a device would have to wait
        reach, phases = position.clamp(0, end - 1), list(dict.fromkeys(cache.phases))
        layout.tables = found = [self.rotation.tables(end, phase) for phase in phases]
        turned = [[(cos[reach][:, :, None], sin[reach][:, :, None]) for cos, sin in tables] for tables in found]
        if len(phases) == 1:
            return turned[0]
        own = [phases.index(phase) for phase in cache.phases]  # per row, which of the tables
        parts = range(len(turned[0]))
        return [
            (
                torch.stack([turned[which][part][0][row] for row, which in enumerate(own)]),
                torch.stack([turned[which][part][1][row] for row, which in enumerate(own)]),
            )
            for part in parts
        ]

    def turning(self, cache: Cache) -> int:
        """Return how many positions may turn; a canvas holds some far beyond its cached slots."""
        return cache.slots if self.spec.attention == "causal" else min(cache.capacity, self.spec.max_positions)

    def _tree(self, position: Tensor, visible: Tensor | None) -> Tensor:
        """Return [B, T, T] bool, node sees node; a padded node sees itself, so that no row of a mask is empty."""
        size = position.shape[1]
        own = torch.eye(size, dtype=torch.bool, device=position.device)
        if visible is not None:
            return visible | own
        is_real = (position >= 0)[:, None, :].expand(-1, size, -1)
        if self.spec.attention == "full":
            return is_real | own
        if self.spec.attention == "block":
            block = position // self.spec.block_size
            return (is_real & (block[:, None, :] <= block[:, :, None])) | own
        return is_real.tril() | own


def upload(values: list[int], device: torch.device) -> Tensor:
    """Return a host list as an int64 tensor on the device, without waiting for the device."""
    if device.type == "cuda":
        return torch.tensor(values, dtype=torch.int64, pin_memory=True).to(device, non_blocking=True)
    return torch.tensor(values, dtype=torch.int64, device=device)
