"""Writing under a constraint: what a rule chose is written as far as the text can still be completed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, Canvas, CanvasRow, Ids
from outpace.canvas.rules.rule import Choice

if TYPE_CHECKING:
    from outpace.constrain.canvas import CanvasConstraint, CanvasState

__all__ = ["begin_constraint", "may_write", "obey"]


def begin_constraint(constraint: CanvasConstraint | None, rest: Sequence[int]) -> CanvasState | None:
    """Return the state of a text whose places are `rest`: given tokens, -1 where one is to be written.

    Raises:
        ConfigError: no text that is allowed fits.
    """
    if constraint is None:
        return None
    state = constraint.start()
    text = [None if token < 0 else token for token in rest]
    if not state.can_complete(text):
        raise constraint.misfit(text)
    return state


def may_write(row: CanvasRow, place: int, token: int, canvas: Canvas) -> bool:
    """Return whether the row's constraint lets a token be written at a masked place, counted from the row's begin."""
    return row.constraint is None or row.constraint.accepts(_text(row, row.tokens, canvas), place - row.prompt, token)


def _text(row: CanvasRow, tokens: Ids, canvas: Canvas) -> list[int | None]:
    """Return what stands behind the prompt, None where masked."""
    return [None if token == canvas.mask_id else token for token in tokens[row.prompt :].tolist()]


def obey(row: CanvasRow, reading: Reading, choice: Choice, canvas: Canvas) -> Choice:
    """Return a choice that leaves the row's constraint a way to be met.

    Chosen tokens are written one after the other, the surest first, each if the text can be completed with those before
    it. The others stay masked. Where none fits, the surest place is drawn anew, with the same noise, from the law of
    the tokens that fit. Nothing is masked again if what is left could not be completed.

    Raises:
        ConfigError: the given pieces leave the constraint no way to be met.
    """
    constraint = row.constraint
    if constraint is None:
        return choice
    tokens = row.tokens.copy()
    again = choice.masked[~row.given[choice.masked]]
    tokens[again] = canvas.mask_id
    text = _text(row, tokens, canvas)
    if len(again) and not constraint.can_complete(text):
        choice = replace(choice, masked=again[:0])
        text = _text(row, row.tokens, canvas)
    drawn = (reading.tokens if choice.tokens is None else choice.tokens).copy()
    chosen = np.flatnonzero(choice.writes)
    chosen = chosen[np.argsort(-reading.confidence[chosen], kind="stable")]
    writes = np.zeros_like(choice.writes)
    for index in chosen.tolist():
        place = int(reading.places[index]) - row.prompt
        if constraint.accepts(text, place, int(drawn[index])):
            text[place] = int(drawn[index])
            writes[index] = True
    if len(chosen) and not writes.any():
        index = _draw_anew(constraint, text, row, reading, canvas, chosen, drawn)
        writes[index] = True
    return replace(choice, writes=writes, tokens=drawn)


def _draw_anew(
    constraint: CanvasState,
    text: list[int | None],
    row: CanvasRow,
    reading: Reading,
    canvas: Canvas,
    chosen: Ids,
    drawn: Ids,
) -> int:
    """Set one drawn token to one that fits; return its index."""
    # The first asked place comes last: there an end token may always be written.
    for index in [*chosen.tolist(), 0]:
        place = int(reading.places[index]) - row.prompt
        barred: Bools = np.zeros(reading.logits.shape[-1], np.bool_)
        if canvas.ends_last and index > 0:
            barred[list(row.ends)] = True
            if not bool((constraint.allowed(text, place) & ~torch.from_numpy(barred)).any()):
                continue
        drawn[index] = constraint.redraw(text, place, functools.partial(_draw, reading, index, barred))
        return int(index)
    raise AssertionError("an end token may always be written at the first place")


def _draw(reading: Reading, index: int, barred: Bools, fits: Tensor) -> int:
    """Draw one token of those that fit; -1 if the law bars them all."""
    logits = reading.logits[index : index + 1]
    bar = ~fits | torch.from_numpy(barred)
    logits = logits.masked_fill(bar.to(logits.device), float("-inf"))
    sampler, where = reading.sampler, torch.from_numpy(reading.places[index : index + 1]).to(logits.device)
    law = sampler.process(logits, None).unsqueeze(0)
    return int(sampler.pick(law, where.unsqueeze(0), visit=reading.visit)[0, 0])
