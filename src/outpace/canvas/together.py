"""One step of all rows at once: what `advance` is to one row, in operations on arrays [rows, places].

It serves rules that are stated over arrays (`Rule.writes`) and blocks of one length, under every cache policy.
`advance` is its oracle in tests, and serves everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from outpace.canvas.advance import Advance
from outpace.canvas.blocks import FixedBlocks
from outpace.canvas.parts import Parts
from outpace.canvas.policies import Step
from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, Canvas, Ids
from outpace.canvas.table import FAR, RowTable, first_of
from outpace.types import Decision, Proposal

__all__ = ["Asked", "Steps", "advance_all", "decide_all", "propose_all", "serves"]


def serves(parts: Parts) -> bool:
    """Return whether rows of such parts can take their steps together."""
    return parts.rule.is_stated_over_arrays and type(parts.schedule) is FixedBlocks


class Steps(Sequence[Any]):
    """The rows after a step, each an `Advance` when it is asked for; None = its law is none.

    Args:
        after: the rows.
        is_broken: [B].
        slots: per row, the cache slots that stay.
    """

    def __init__(self, after: RowTable, is_broken: Bools, slots: Sequence[Sequence[int]]) -> None:
        self.after, self.is_broken, self.slots = after, is_broken, slots

    def __len__(self) -> int:
        return len(self.is_broken)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        if self.is_broken[at]:
            return None
        return Advance(self.after.row(at), np.array(self.slots[at], dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Asked:
    """What a forward is asked of the rows.

    Attributes:
        rows: as they are forwarded.
        places: [B, A] the undecided places of each, ascending; `FAR` where a row has fewer.
    """

    rows: RowTable
    places: Ids


def _asked(rows: RowTable, parts: Parts, live: Ids) -> Bools:
    """Return [B, P] the places whose laws the next forward is asked for, as `places_asked`."""
    assert isinstance(parts.schedule, FixedBlocks)  # `serves` has looked
    place = np.arange(rows.tokens.shape[1])
    stop = np.minimum(parts.schedule.asked_all(rows, parts.canvas), live)
    asked: Bools = (rows.tokens == parts.canvas.mask_id) & (place >= rows.base) & (place < stop)
    return asked


def _packed(marks: Bools) -> tuple[Ids, Ids]:
    """Return the marked places of each row, [B, N], `FAR` behind those of a row, and how many these are, [B]."""
    count = marks.sum(1)
    row, at = marks.nonzero()
    places = np.full((len(count), max(int(count.max()), 1)), FAR)
    places[row, np.arange(len(row)) - (count.cumsum() - count)[row]] = at
    return places, count


def _seen(rows: RowTable, parts: Parts, live: Ids) -> Ids:
    """Return [B, 1] the place up to which a forward holds each row, as `seen`."""
    assert isinstance(parts.schedule, FixedBlocks)  # `serves` has looked
    canvas = parts.canvas
    stop = np.minimum(live, canvas.border(rows.base, rows.prompt))
    if canvas.ahead >= 0 and not canvas.block_size:
        stop = np.minimum(stop, parts.schedule.asked_all(rows, canvas) + canvas.ahead)
    return stop


def propose_all(rows: RowTable, parts: Parts, device: torch.device, origin: str) -> Proposal:
    """Lay all rows out as one forward, as `propose_windows`; `carry` holds what is asked."""
    canvas, live = parts.canvas, rows.live()
    seen, (places, _) = _seen(rows, parts, live), _packed(_asked(rows, parts, live))
    if rows.slot is None:
        length = (seen - rows.held)[:, 0]
        column = np.arange(int(length.max()))
        place, node = rows.held + column, places - rows.held
        is_node = column < length[:, np.newaxis]
    else:
        is_new = (rows.slot < 0) & (np.arange(rows.tokens.shape[1]) < seen)
        place, length = _packed(is_new)
        is_node, node = place < FAR, rows.at(is_new.cumsum(1), places) - 1
    table = np.empty((2, *place.shape), dtype=np.int64)
    table[0], table[1] = np.where(is_node, rows.at(rows.tokens, place), 0), np.where(is_node, place, 0)
    visible = None
    if canvas.has_causal_text:
        visible = torch.from_numpy(_sight(table[1], is_node, rows, canvas)).to(device)
    laid, ask = torch.from_numpy(table).to(device), torch.from_numpy(np.where(places < FAR, node, 0)).to(device)
    lengths, carry = length.tolist(), Asked(rows, places)
    return Proposal(laid[0], lengths, None, laid[1], visible, origin=origin, ask=ask, is_whole=True, carry=carry)


def _sight(place: Ids, is_node: Bools, rows: RowTable, canvas: Canvas) -> Bools:
    """Return [B, W, W]: which node sees which; padding sees itself, so that its softmax stays finite."""
    found = canvas.sight(place, rows.base, rows.prompt)
    assert found is not None  # causal text has blocks behind it
    return (found & is_node[:, np.newaxis] & is_node[..., np.newaxis]) | np.eye(place.shape[1], dtype=np.bool_)


def advance_all(asked: Asked, reading: Reading, parts: Parts) -> Steps:
    """Return all rows after one step, as `advance` returns one.

    Args:
        asked: what was forwarded.
        reading: of all rows, arrays [B, A]; places of `FAR` are none.
        parts: that `serves` is true of.
    """
    assert isinstance(parts.schedule, FixedBlocks)  # `serves` has looked
    # Every operation counts here: behind a long forward, the code of each comes from memory anew.
    canvas, rows = parts.canvas, asked.rows
    is_new, begun = rows.end <= rows.base, rows
    if is_new.any():
        ends = np.where(is_new, parts.schedule.asked_all(rows, canvas), rows.end)
        begun = rows.but(end=ends, step=np.where(is_new, 0, rows.step))
    writes, is_broken = parts.rule.writes(reading, begun, begun.memo), reading.tokens < 0
    if is_broken.any():
        is_broken &= reading.places < FAR
        writes &= ~is_broken.any(1, keepdims=True)
    tokens, log_probs = rows.tokens.copy(), rows.log_probs.copy()
    row, at = writes.nonzero()
    place = reading.places[row, at]
    tokens[row, place] = reading.tokens[row, at]
    log_probs[row, place] = np.log(np.maximum(reading.confidence[row, at], 1e-300))
    visit = rows.visit + writes.sum(1, keepdims=True)
    after = begun.but(tokens=tokens, log_probs=log_probs, visit=visit, step=begun.step + 1)
    after, slots = _keep(rows, _finish(after, canvas.mask_id), parts)
    return Steps(after, np.logical_or.reduce(is_broken, axis=1), slots)


def _finish(rows: RowTable, mask_id: int) -> RowTable:
    """Make blocks final in which nothing is masked, as the step of one row does."""
    live, place = rows.live(), np.arange(rows.tokens.shape[1])
    stop = np.minimum(rows.end, live)
    masked = rows.tokens == mask_id
    is_done = ~(masked & (place >= rows.base) & (place < stop)).any(1, keepdims=True)
    if not is_done.any():
        return rows
    first = first_of(masked & (place >= stop) & (place < live), live)
    base, end = np.where(is_done, first, rows.base), np.where(is_done, first, rows.end)
    return rows.but(base=base, end=end, step=np.where(is_done, 0, rows.step))


def _keep(before: RowTable, after: RowTable, parts: Parts) -> tuple[RowTable, list[Sequence[int]]]:
    """Return the rows with what the cache holds from now on, and the slots of it that stay, as `keep` of one row."""
    canvas = parts.canvas
    if parts.policy.name == "none":
        return after.but(held=0 * before.held, slot=None), [()] * len(before.memo)
    live = after.live()
    # 1. Under the exact cache the first places stay.
    if parts.policy.name == "block":
        held = canvas.floor(before.base, before.prompt)
        if canvas.logits_shift:  # what is said of a place is computed one place before it: that one cannot stay
            held = np.minimum(held, np.maximum(first_of(_asked(after, parts, live), after.size) - 1, 0))
        return after.but(held=held, slot=None), [range(count) for count in held[:, 0].tolist()]
    # 2. Else what the policy keeps of what is there: neither what is not seen next, nor what is asked.
    place, is_held, wanted = np.arange(after.tokens.shape[1]), before.is_held(), _asked(after, parts, live)
    is_new = ~is_held & (place < _seen(before, parts, before.live()))
    stays = parts.policy.stay(Step(before, after, canvas)) & (place < _seen(after, parts, live)) & ~wanted
    stays &= is_held | is_new
    if canvas.logits_shift:
        stays[:, :-1] &= ~wanted[:, 1:]
    # The cache holds the old entries, and behind them one for each node of this forward.
    old = place if before.slot is None else before.slot
    number = np.where(stays, np.where(is_held, old, before.held + is_new.cumsum(1) - 1), FAR)
    order, held = number.argsort(1), stays.sum(1, keepdims=True)
    slot = np.empty_like(number)
    np.put_along_axis(slot, order, np.where(place < held, place, -1), 1)
    kept = np.take_along_axis(number, order, 1)
    slots: list[Sequence[int]] = [line[:count].tolist() for line, count in zip(kept, held[:, 0].tolist(), strict=True)]
    # Entries beyond the model's finished blocks are approximate, and age until the policy computes them anew.
    is_exact = held <= canvas.floor(before.base, before.prompt)
    return after.but(held=held, slot=slot, age=np.where(is_exact, 0, before.age + 1)), slots


def decide_all(before: RowTable, steps: Steps) -> Decision:
    """Return the decision that the steps make; `carry` holds them."""
    after, is_broken = steps.after, steps.is_broken
    num = np.where(is_broken, 1, (after.base - before.base)[:, 0])
    column = np.arange(int(num.max()))
    place = before.base + column
    tokens, chances = after.at(after.tokens, place), after.at(after.log_probs, place)
    if is_broken.any():
        tokens[is_broken], chances[is_broken] = -1, 0.0
    table, path = torch.from_numpy(tokens), torch.from_numpy(np.broadcast_to(column, tokens.shape).copy())
    chance, nums = torch.from_numpy(chances), torch.from_numpy(num)
    return Decision(table, nums, path, steps.slots, log_probs=chance, carry=steps)
