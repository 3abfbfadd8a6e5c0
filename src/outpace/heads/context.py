"""Drafting with a block drafter: features of the text in a cache of its own, and one pass over the places ahead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from outpace.cache import FIRST_SLOTS, Cache
from outpace.draft.reading import Limits
from outpace.heads.draft import SlotDrafter
from outpace.heads.model import HeadModel
from outpace.kernels.branches import best_branches
from outpace.run.tree import TokenTree
from outpace.sampling import Stream
from outpace.sampling.truncation import needs_order
from outpace.types import Context, Outcome, View

if TYPE_CHECKING:
    from outpace.heads.dflash import DFlashNet

__all__ = ["ContextDrafter"]


@dataclass
class ContextDrafter(SlotDrafter):
    """A `SlotDrafter` whose places see the features of the whole text.

    Features become keys and values once, when the target's states of their tokens come; the cache holds them turned by
    their positions, and behind them, as scratch, those of the block.

    Attributes:
        feature: [B, H] the feature of the token before the last one.
        embedded: [B, H] float32 the last tokens, where the pass is one call.
    """

    feature: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    embedded: Tensor | None = field(default=None, init=False)

    @classmethod
    def begin_with(cls, model: HeadModel, context: Context) -> ContextDrafter:
        """Return the drafter of the joining rows, which has read nothing."""
        net: Any = model.net
        rows, places, own = len(context.texts), net.places, net.config.settings
        # A row that idles at its limit is staged beside the others; so are tokens of longer rows.
        limit = 2 * context.capacity + 2 * places
        shape = (rows, min(limit, FIRST_SLOTS), own["kv_heads"], own["head_dim"])
        held = [torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in range(2 * own["blocks"])]
        cache = Cache(held, 1, context.counters["draft"], [0] * rows, limit=limit)
        dtype = model.dtype if model.compiled is None else torch.float32
        none = torch.zeros(rows, net.config.hidden_size, dtype=dtype, device=model.device)
        return cls(model, cache, cls.features_for(model, context), none)

    @property
    def takes_passes(self) -> bool:
        """Whether every level of a tree is asked for by itself."""
        return self.adapter.pairs is None

    def observe(self, outcome: Outcome, view: View) -> None:
        """Take in the states of what became text."""
        self.features.observe(outcome, view)

    def texts(self, view: View, reach: Sequence[int]) -> Tensor:
        """Read the states that came, make the laws of all places, and return the first, [B, K]."""
        net, made = self._net_read, self._look(view, reach)
        assert self.chain is not None  # looking set it
        return net.after(self.adapter, made, torch.zeros_like(self.chain), self.chain.unsqueeze(1))[:, 0]

    def best(self, view: View, levels: Sequence[int], width: int, by_slot: bool, limits: Limits) -> TokenTree | None:
        """Return the best tree in one call, where a path changes a law by its last token alone."""
        sampler, pairs = view.sampler, self.adapter.pairs
        is_whole = sampler.is_greedy or not needs_order(sampler.settings)
        if pairs is None or sampler.parts or sampler.settings.names_tokens or not is_whole:
            return None
        net, ids = self._net_read, self.ids
        laws = self._look(view, levels)[..., net.config.hidden_size :]
        assert self.chain is not None and self.embedded is not None  # looking set them
        keys = None
        if not sampler.is_greedy:
            place = torch.tensor(view.lengths).unsqueeze(1) + torch.arange(laws.shape[1])
            keys = sampler.noise(Stream.TARGET, place)
        found = best_branches(
            laws,
            pairs,
            pairs.short(self.chain[:, 0], self.embedded),
            levels,
            limits.floors,
            ids=ids,
            keys=keys,
            temperature=sampler.settings.temperature,
            width=width,
            by_slot=by_slot,
            min_gain=limits.min_gain,
            spread=limits.spread,
        )
        return TokenTree(*found)

    @property
    def _net_read(self) -> DFlashNet:
        return self.adapter.net  # type: ignore[return-value]

    def _look(self, view: View, reach: Sequence[int]) -> Tensor:
        """Read the states that came, and make the hidden states and laws of all places, [B, D, hidden + K]."""
        last = torch.tensor([text[-1] for text in view.texts], device=self.device)
        reading = self._take([row for row, ahead in enumerate(reach) if ahead], view.lengths)
        net = self._net_read
        look = self._look_eagerly if self.adapter.compiled is None else self._look_at_once
        self.made, self.chain = look(net, reading, last), last.unsqueeze(1)
        self.cache.keep([range(count) for count in reading.counts])
        self.cache.counter.add(len(last) * net.places, len(net.layers))
        return self.made

    def _look_at_once(self, net: DFlashNet, reading: _Reading, last: Tensor) -> Tensor:
        cache, compiled = self.cache, self.adapter.compiled
        ends = [held + count for held, count in zip(cache.lengths, reading.counts, strict=True)]
        cache.reserve(max(ends) + net.places)
        places = (reading.counts, cache.lengths, reading.offset, reading.anchor)
        furthest = max(max(reading.anchor) + net.places, *map(sum, zip(ends, reading.offset, strict=True)))
        turns = net.turns(furthest)
        states = reading.states[0] if len(reading.states) == 1 else torch.cat(reading.states)
        self.embedded = self.adapter.embed(last).float()
        made: Tensor = compiled.run(states, places, self.embedded, self.feature, cache, turns)
        return made

    def _look_eagerly(self, net: DFlashNet, reading: _Reading, last: Tensor) -> Tensor:
        fresh = net.features(pad_sequence(reading.states, batch_first=True))
        if fresh.shape[1]:
            at = torch.tensor(reading.counts, device=self.device)
            rows = torch.arange(len(at), device=self.device)
            self.feature = torch.where((at > 0).unsqueeze(1), fresh[rows, at - 1], self.feature)
        hidden = net.run(net.block(self.adapter, last, self.feature), self._attention(net, fresh, reading))
        return torch.cat([hidden, self.adapter.logits(hidden)], -1)

    def kept(self, tokens: Tensor) -> Tensor | None:
        """Return the chance that each draft of chains [B, n] and all before it are kept; None = it cannot tell."""
        assert self.made is not None and self.chain is not None  # texts came first
        net = self._net_read
        before = torch.cat([self.chain[:, :1], tokens[:, :-1]], 1)
        found = net.confidence(self.adapter, self.made[:, : tokens.shape[1], : net.config.hidden_size], before)
        return None if found is None else found.sigmoid().cumprod(-1)

    def _take(self, rows: Sequence[int], lengths: Sequence[int]) -> _Reading:
        """Return the new states of some rows; after a gap in what is known, a row's cache begins anew behind it."""
        features, cache = self.features, self.cache
        cache.truncate(features.whole)
        offset = [start - held for start, held in zip(features.starts, cache.lengths, strict=True)]
        taken = features.take(rows)
        counts = [len(states) for states in taken]
        return _Reading(taken, counts, offset, [n - 1 for n in lengths])

    def _attention(self, net: DFlashNet, fresh: Tensor, reading: _Reading) -> Callable[[int, Tensor], Tensor]:
        """Return the attention of places [B, S, H] over the cache, new features [B, n, H] and each other."""
        places, own, cache, device = net.places, net.config.settings, self.cache, self.device
        ends = [held + count for held, count in zip(cache.lengths, reading.counts, strict=True)]
        extent = max(ends) + places
        cache.reserve(extent + 1)  # padding goes to the slot behind all others
        size = fresh.shape[1]
        step = torch.arange(size + places, device=device)
        held, count, offset, anchor = torch.tensor(
            [cache.lengths, reading.counts, reading.offset, reading.anchor], device=device
        ).unsqueeze(-1)
        end = held + count
        is_block = step >= size
        slot = torch.where(is_block, end + step - size, torch.where(step < count, held + step, extent))
        position = torch.where(is_block, anchor + step - size, offset + held + step.clamp(max=size))
        turn = net.rope(int(position.max()) + 1)[position]
        sees = _sight(end, offset, anchor, extent, places, own["window"], own["is_causal"])
        row = torch.arange(len(ends), device=device).unsqueeze(1)

        def attend(index: int, y: Tensor) -> Tensor:
            layer: Any = net.layers[index]
            query = layer.self_attn.query(y, turn[:, size:])
            key, value = layer.self_attn.key_value(torch.cat([fresh, y], 1), turn)
            keys, values = cache.buffers[2 * index : 2 * index + 2]
            keys[row, slot], values[row, slot] = key, value
            return layer.self_attn.attend(query, keys[:, :extent], values[:, :extent], sees)  # type: ignore[no-any-return]

        return attend


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a pass reads.

    Attributes:
        states: per row [n, F] of tokens that were not read yet.
        counts: how many per row.
        offset: per row the place in the text of the cache's first slot.
        anchor: per row the place of its last token.
    """

    states: list[Tensor]
    counts: list[int]
    offset: list[int]
    anchor: list[int]


def _sight(
    end: Tensor, offset: Tensor, anchor: Tensor, extent: int, places: int, window: int, is_causal: bool
) -> Tensor | None:
    """Return [B, S, E] bool, which slots each place sees; None = all of them."""
    if len(end) == 1 and not is_causal and not window:
        return None
    slot, place = torch.arange(extent, device=end.device), torch.arange(places, device=end.device).unsqueeze(1)
    end, offset, anchor = end.unsqueeze(-1), offset.unsqueeze(-1), anchor.unsqueeze(-1)
    far = slot < end
    if window:
        far = far & (slot + offset > anchor + place - window)
    near = (slot >= end) & (slot < end + (place + 1 if is_causal else places))
    return far | near
