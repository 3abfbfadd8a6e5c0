"""One step of all rows at once: what `advance` is to one row, in operations on arrays [rows, places].

It serves rules that are stated over arrays (`Rule.writes`), blocks of one length, and caches that hold the first places
of a text or nothing; `advance` is its oracle in tests, and serves everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from outpace.canvas.advance import Advance
from outpace.canvas.blocks import FixedBlocks
from outpace.canvas.parts import Parts
from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, Canvas, Ids
from outpace.canvas.table import RowTable, first_of
from outpace.types import Decision, Proposal

__all__ = ["FAR", "Asked", "Steps", "advance_all", "decide_all", "propose_all", "serves"]

FAR = 1 << 40  # stands for a place where a row asks for fewer than others


def serves(parts: Parts) -> bool:
    """Return whether rows of such parts can take their steps together."""
    has_prefix = parts.policy.name in ("none", "block")
    return parts.rule.is_stated_over_arrays and type(parts.schedule) is FixedBlocks and has_prefix


class Steps(Sequence[Any]):
    """The rows after a step, each an `Advance` when it is asked for; None = its law is none.

    Args:
        after: the rows.
        is_broken: [B].
    """

    def __init__(self, after: RowTable, is_broken: Bools) -> None:
        self.after, self.is_broken = after, is_broken

    def __len__(self) -> int:
        return len(self.is_broken)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        if self.is_broken[at]:
            return None
        return Advance(self.after.row(at), np.arange(int(self.after.held[at, 0])))


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


def propose_all(rows: RowTable, parts: Parts, device: torch.device, origin: str) -> Proposal:
    """Lay all rows out as one forward, as `propose_windows`; `carry` holds what is asked."""
    assert isinstance(parts.schedule, FixedBlocks)  # `serves` has looked
    canvas, live = parts.canvas, rows.live()
    # 1. What is seen, but for what the cache holds.
    seen = np.minimum(live, canvas.border(rows.base, rows.prompt))
    if canvas.ahead >= 0 and not canvas.block_size:
        seen = np.minimum(seen, parts.schedule.asked_all(rows, canvas) + canvas.ahead)
    length = seen - rows.held
    column = np.arange(int(length.max()))
    place, is_node = rows.held + column, column < length
    table = np.empty((2, *place.shape), dtype=np.int64)
    table[0], table[1] = np.where(is_node, rows.at(rows.tokens, place), 0), np.where(is_node, place, 0)
    visible = _sight(place, is_node, rows, canvas) if canvas.has_causal_text else None
    # 2. What is asked of it.
    asked = _asked(rows, parts, live)
    count = asked.sum(1)
    row, at = asked.nonzero()
    places = np.full((len(count), max(int(count.max()), 1)), FAR)
    places[row, np.arange(len(row)) - (count.cumsum() - count)[row]] = at
    ask = np.where(places < FAR, places - rows.held, 0)
    laid, nodes = torch.from_numpy(table).to(device), torch.from_numpy(ask).to(device)
    length_of: list[int] = length[:, 0].tolist()
    carry = Asked(rows, places)
    seeing = None if visible is None else torch.from_numpy(visible).to(device)
    return Proposal(laid[0], length_of, None, laid[1], seeing, origin=origin, ask=nodes, is_whole=True, carry=carry)


def _sight(place: Ids, is_node: Bools, rows: RowTable, canvas: Canvas) -> Bools:
    """Return [B, W, W]: which node sees which; padding sees itself, so that its softmax stays finite."""
    found = canvas.sight(place, rows.base, rows.prompt)
    assert found is not None  # causal text has blocks behind it
    return (found & is_node[:, np.newaxis] & is_node[..., np.newaxis]) | np.eye(place.shape[1], dtype=np.bool_)


def advance_all(rows: RowTable, reading: Reading, parts: Parts) -> Steps:
    """Return all rows after one step, as `advance` returns one.

    Args:
        rows: as they were forwarded.
        reading: of all rows, arrays [B, A]; places of `FAR` are none.
        parts: that `serves` is true of.
    """
    assert isinstance(parts.schedule, FixedBlocks)  # `serves` has looked
    # Every operation counts here: behind a long forward, the code of each comes from memory anew.
    canvas, is_new, begun = parts.canvas, rows.end <= rows.base, rows
    if is_new.any():
        ends = np.where(is_new, parts.schedule.asked_all(rows, canvas), rows.end)
        begun = replace(rows, end=ends, step=np.where(is_new, 0, rows.step))
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
    after = replace(begun, tokens=tokens, log_probs=log_probs, visit=visit, step=begun.step + 1)
    after = _finish(after, canvas.mask_id)
    return Steps(replace(after, held=_held(rows, after, parts)), np.atleast_1d(is_broken.any(1)))


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
    return replace(rows, base=base, end=end, step=np.where(is_done, 0, rows.step))


def _held(before: RowTable, after: RowTable, parts: Parts) -> Ids:
    """Return [B, 1] how many places the cache holds from now on."""
    if parts.policy.name == "none":
        return np.zeros_like(before.held)
    stays = parts.canvas.floor(before.base, before.prompt)
    if not parts.canvas.logits_shift:
        return stays
    # What is said of a place is computed one place before it: that one cannot stay.
    first = first_of(_asked(after, parts, after.live()), after.size)
    return np.maximum(np.where(first == stays, stays - 1, stays), 0)


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
    keep = [range(held) for held in after.held[:, 0].tolist()]
    return Decision(table, torch.from_numpy(num), path, keep, log_probs=torch.from_numpy(chances), carry=steps)
