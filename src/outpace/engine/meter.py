"""What an engine counts, in the thread that steps it."""

from __future__ import annotations

import copy
from collections import deque

from outpace.engine.entry import Entry
from outpace.engine.face import Histogram, Load, Piece
from outpace.run.row import Row
from outpace.types import FinishReason, Outcome

__all__ = ["Meter"]

# Bounds in seconds, as vLLM's dashboards have them.
_LONG = (1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, *_LONG, 160.0, 640.0, 2560.0)
_BETWEEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, *_LONG)
_MINUTES = (60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)
_WHOLE = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, *_MINUTES)
_BOUNDS = {"queue": _WHOLE, "first_token": _FIRST, "between_tokens": _BETWEEN, "prefill": _WHOLE, "decode": _WHOLE}
_BOUNDS |= {"per_token": _BETWEEN, "whole": _WHOLE}
_RECENT = 32  # ends of asks that the rate is told from


class Meter:
    """Counts steps, rows and asks.

    Attributes:
        load: what was counted.
    """

    def __init__(self) -> None:
        seconds = {name: Histogram(bounds) for name, bounds in _BOUNDS.items()}
        self.load = Load(finished={reason.value: 0 for reason in FinishReason}, seconds=seconds)
        self._ends = deque[float](maxlen=_RECENT)

    def taken(self, entry: Entry) -> None:
        """Count an ask that was taken in."""
        row = entry.plan.rows[0]
        self.load.prompt_tokens += row.num_prompt if row.source is None else len(row.source)

    def begun(self, entry: Entry, now: float, cached_tokens: int) -> None:
        """Count an ask whose first row is begun."""
        entry.begun, entry.cached_tokens = now, cached_tokens
        self.load.cached_tokens += cached_tokens
        self.load.seconds["queue"].add(now - entry.arrived)

    def wrote(self, entry: Entry, row: Row, piece: Piece, now: float) -> None:
        """Count what became final of a row."""
        load, count = self.load, len(piece.tokens)
        load.written_tokens += count
        if piece.finish is not None:
            load.finished[piece.finish] += 1
        if not count:
            return
        if entry.first is None:
            entry.first = now
            load.seconds["first_token"].add(now - entry.arrived)
            load.seconds["prefill"].add(now - (entry.begun or entry.arrived))
        if row in entry.last:
            load.seconds["between_tokens"].add((now - entry.last[row]) / count, count)
        entry.last[row] = now

    def stepped(self, outcome: Outcome) -> None:
        """Count a step of a run."""
        load, proposal = self.load, outcome.proposal
        load.steps += 1
        if proposal is None:
            return
        load.drafts += sum(length > 0 for length in proposal.length)
        load.drafted += sum(proposal.length)
        load.accepted += sum(outcome.accepted)
        most = max(outcome.accepted, default=0)
        load.accepted_at += [0] * (most - len(load.accepted_at))
        for depth in range(most):
            load.accepted_at[depth] += sum(count > depth for count in outcome.accepted)

    def ended(self, entry: Entry, now: float) -> None:
        """Count an ask whose rows have all ended."""
        self._ends.append(now)
        self.load.seconds["whole"].add(now - entry.arrived)
        if entry.first is not None:
            self.load.seconds["decode"].add(now - entry.first)
            more = max(len(row.written) for row in entry.plan.rows) - 1
            if more > 0:
                self.load.seconds["per_token"].add((now - entry.first) / more)

    def retry_s(self) -> float:
        """Return after how many seconds a place in a full queue should be free, from when the last asks ended."""
        if len(self._ends) < 2:
            return 1.0
        return min(60.0, max(0.05, (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)))

    def read(self) -> Load:
        """Return a copy of what was counted; callable from any thread."""
        return copy.deepcopy(self.load)
