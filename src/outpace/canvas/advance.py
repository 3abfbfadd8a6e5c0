"""One step of one row, as a pure function: read, choose, write, finish the block, decide what the cache keeps.

Reference decoding applies it to what was forwarded. Draft-and-verify applies it to guesses as well, which is why it
may look at nothing but its arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from outpace.canvas.obey import obey
from outpace.canvas.parts import Parts
from outpace.canvas.policies import Step
from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, Canvas, CanvasRow, Floats, Ids
from outpace.canvas.window import CanvasWindow, places_asked, seen

__all__ = ["Advance", "advance", "begun", "keep", "write"]


@dataclass(frozen=True, slots=True)
class Advance:
    """A row after a step.

    Attributes:
        row: with its new tokens, base, and what the cache holds.
        slots: [L] cache slots that stay, as `Decision.keep` takes them.
    """

    row: CanvasRow
    slots: Ids


def advance(row: CanvasRow, reading: Reading, window: CanvasWindow, parts: Parts) -> Advance:
    """Return the row after one step."""
    return keep(row, write(row, reading, parts), window, parts)


def begun(row: CanvasRow, reading: Reading, parts: Parts) -> CanvasRow:
    """Return the row with a block in work: the schedule ends a new one where the reading suggests."""
    if row.end > row.base:
        return row
    return replace(row, end=parts.schedule.open(row, reading, parts.canvas), step=0)


def write(row: CanvasRow, reading: Reading, parts: Parts) -> CanvasRow:
    """Write what the rule chooses and finish the block if nothing is masked in it; the cache is left as it was."""
    # 1. Choose. A constraint may hold back some of the choice, and may change a token.
    row, canvas = begun(row, reading, parts), parts.canvas
    choice = obey(row, reading, parts.rule.choose(reading, row, row.memo), canvas)
    # 2. Mask again first: a place cannot be asked while it is written, so the two never meet.
    tokens, log_probs = row.tokens.copy(), row.log_probs.copy()
    if len(choice.masked):
        again = choice.masked[~row.given[choice.masked]]
        tokens[again], log_probs[again] = canvas.mask_id, 0.0
    # 3. Write. The log-probability is noted now, since later laws are of another canvas.
    at = reading.places[choice.writes]
    drawn = reading.tokens if choice.tokens is None else choice.tokens
    tokens[at] = drawn[choice.writes]
    log_probs[at] = _log_probs(reading, drawn, choice.writes)
    # The key of draws counts tokens, not steps: it moves exactly when the canvas does, so that a guess that comes to
    # the same canvas draws the same tokens.
    after = replace(
        row,
        tokens=tokens,
        log_probs=log_probs,
        visit=row.visit + len(at),
        step=row.step + 1,
        memo=choice.memo,
    )
    return after if choice.holds else _finish(after, canvas)


def _log_probs(reading: Reading, tokens: Ids, writes: Bools) -> Floats:
    chances: Floats
    if tokens is reading.tokens:  # the rule has mostly read these already
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
    # Pieces that the caller gave, and places written beyond the block, need no block of their own.
    rest = row.undecided(canvas, end, live)
    base = int(rest[0]) if len(rest) else live
    return replace(row, base=base, end=base, step=0)


def keep(before: CanvasRow, after: CanvasRow, window: CanvasWindow, parts: Parts) -> Advance:
    """Ask the policy what stays in the cache, and say which slots that is."""
    canvas = parts.canvas
    stays = parts.policy.stay(Step(before, after, canvas))
    # What is not there, or is wanted next, is computed anew. With shifted logits so is the place before it.
    stays[min(seen(after, parts), len(after.tokens)) :] = False
    asked = places_asked(after, parts)
    stays[asked] = False
    if canvas.logits_shift:
        stays[asked - 1] = False
    # The cache holds the old entries, and behind them one for each node of this forward.
    old, new = stays[before.held], stays[window.places]
    slots = np.concatenate([np.flatnonzero(old), len(before.held) + np.flatnonzero(new)])
    held = np.concatenate([before.held[old], window.places[new]])
    # Entries beyond the model's finished blocks are approximate, and age until the policy computes them anew.
    is_exact = len(held) <= canvas.floor(before.base, before.prompt)
    return Advance(replace(after, held=held, age=0 if is_exact else before.age + 1), slots)
