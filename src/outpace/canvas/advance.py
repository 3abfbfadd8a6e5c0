"""One step of one row, as a pure function: read, choose, write, finish the block, decide what the cache keeps.

Reference decoding applies it to what was forwarded. Draft-and-verify applies it to guesses as well, which is why it
may look at nothing but its arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from outpace.canvas.blocks import Schedule
from outpace.canvas.obey import obey
from outpace.canvas.policies import Policy, Step
from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, Canvas, CanvasRow, Floats, Ids
from outpace.canvas.rules import Rule
from outpace.canvas.window import Window, places_asked, seen

__all__ = ["Advance", "advance", "keep", "write"]


@dataclass(frozen=True, slots=True)
class Advance:
    """A row after a step.

    Attributes:
        row: with its new tokens, base, and what the cache holds.
        slots: [L] cache slots that stay, as `Decision.keep` takes them.
    """

    row: CanvasRow
    slots: list[int]


def advance(
    row: CanvasRow, reading: Reading, window: Window, canvas: Canvas, rule: Rule, schedule: Schedule, policy: Policy
) -> Advance:
    """Return the row after one step."""
    return keep(row, write(row, reading, canvas, rule, schedule), window, canvas, schedule, policy)


def write(row: CanvasRow, reading: Reading, canvas: Canvas, rule: Rule, schedule: Schedule) -> CanvasRow:
    """Write what the rule chooses and finish the block if nothing is masked in it; the cache is left as it was."""
    if row.end <= row.base:
        row = replace(row, end=schedule.open(row, reading, canvas), step=0)
    choice = obey(row, reading, rule.choose(reading, row), canvas)
    tokens, log_probs = row.tokens.copy(), row.log_probs.copy()
    if len(choice.masked):
        again = choice.masked[~row.given[choice.masked]]
        tokens[again], log_probs[again] = canvas.mask_id, 0.0
    at = reading.places[choice.writes]
    drawn = reading.tokens if choice.tokens is None else choice.tokens
    tokens[at] = drawn[choice.writes]
    log_probs[at] = _log_probs(reading, drawn, choice.writes)
    after = replace(
        row,
        tokens=tokens,
        log_probs=log_probs,
        visit=row.visit + len(at),
        step=row.step + 1,
        memo=choice.memo,
    )
    return _finish(after, canvas)


def _log_probs(reading: Reading, tokens: Ids, writes: Bools) -> Floats:
    chances: Floats
    if tokens is reading.tokens:
        chances = reading.confidence[writes]
    else:
        index = np.flatnonzero(writes)
        chances = reading.probs[index, tokens[index]].double().cpu().numpy()
    logs: Floats = np.log(np.maximum(chances, 1e-300))
    return logs


def _finish(row: CanvasRow, canvas: Canvas) -> CanvasRow:
    """Make the block final when nothing in it is masked, and with it whatever is decided right behind it."""
    live = row.live()
    end = min(row.end, live)
    if (row.tokens[row.base : end] == canvas.mask_id).any():
        return row
    rest = row.undecided(canvas, end, live)
    base = int(rest[0]) if len(rest) else live
    return replace(row, base=base, end=base, step=0)


def keep(
    before: CanvasRow, after: CanvasRow, window: Window, canvas: Canvas, schedule: Schedule, policy: Policy
) -> Advance:
    """Ask the policy what stays in the cache, and say which slots that is."""
    size = len(after.tokens)
    stays = policy.stay(Step(before, after, canvas))
    # What is not there, or is wanted next, is computed anew. With shifted logits so is the place before it.
    stays[min(seen(after, canvas, schedule), size) :] = False
    asked = places_asked(after, canvas, schedule)
    stays[asked] = False
    if canvas.logits_shift:
        stays[asked - 1] = False
    old, new = stays[before.held], stays[window.places]
    slots = [*np.flatnonzero(old).tolist(), *(len(before.held) + np.flatnonzero(new)).tolist()]
    held = np.concatenate([before.held[old], window.places[new]])
    is_exact = len(held) <= canvas.floor(before.base)
    return Advance(replace(after, held=held, age=0 if is_exact else before.age + 1), slots)
