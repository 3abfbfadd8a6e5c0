"""What a step did to a row on a canvas, for those who watch."""

from __future__ import annotations

import numpy as np

from outpace.canvas.advance import Advance
from outpace.canvas.row import CanvasRow
from outpace.canvas.verify import Verified
from outpace.types import Report

__all__ = ["report"]


def report(before: CanvasRow, step: Advance | None) -> Report:
    """Return the places that each round of a step wrote or took back, and how likely they were.

    Args:
        before: the row when the step began.
        step: what the forward made of it; None = the row is broken, and nothing was written.
    """
    after = step.rows if isinstance(step, Verified) else [] if step is None else [step.row]
    num_guesses = step.guessed if isinstance(step, Verified) else 0
    told = Report([], [], [], num_rounds=len(after), num_guesses=num_guesses)
    for number, row in enumerate(after):
        places = np.flatnonzero(row.tokens != before.tokens)
        told.places.extend(places.tolist())
        told.tokens.extend(row.tokens[places].tolist())
        told.log_probs.extend(row.log_probs[places].tolist())
        told.rounds.extend([number] * len(places))
        before = row
    return told
