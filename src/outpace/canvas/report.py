"""What a step did to a row on a canvas, for those who watch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from outpace.canvas.row import CanvasRow
from outpace.types import Report

__all__ = ["report"]


def report(before: CanvasRow, after: Sequence[CanvasRow], num_guesses: int = 0) -> Report:
    """Return the places that each round of a step wrote or took back, and how likely they were.

    Args:
        before: the row when the step began.
        after: the row after each of its rounds; empty = the row is broken, and nothing was written.
        num_guesses: guessed states that were forwarded beside it.
    """
    told = Report([], [], [], num_rounds=len(after), num_guesses=num_guesses)
    for number, row in enumerate(after):
        places = np.flatnonzero(row.tokens != before.tokens)
        told.places.extend(places.tolist())
        told.tokens.extend(row.tokens[places].tolist())
        told.log_probs.extend(row.log_probs[places].tolist())
        told.rounds.extend([number] * len(places))
        before = row
    return told
