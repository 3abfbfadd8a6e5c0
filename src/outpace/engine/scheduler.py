"""Which rows are written now: a queue, the places that rows take, and steps that serve all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from outpace.api.running import Plan, finish
from outpace.api.starting import new_run, new_text, own, shared_run
from outpace.engine.entry import Entry, step_of
from outpace.engine.lane import Lane
from outpace.engine.meter import Meter
from outpace.engine.reading import read_prompt
from outpace.errors import NoPages
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.text.stream import TextStream
from outpace.types import FinishReason, Guarantee, Outcome

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = ["Limits", "Scheduler"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an engine takes upon itself.

    Attributes:
        max_rows: samples written side by side.
        max_queue: asks that wait beside those being written; more are refused.
        step_tokens: most prompt tokens read in one step, beside what is being written.
        age: after this many samples were begun before an ask that waits, it counts as one priority more urgent.
    """

    max_rows: int = 32
    max_queue: int = 256
    step_tokens: int = 256
    age: int = 64


class Scheduler:
    """Everything that an engine's thread does, one turn at a time.

    Args:
        lm: what writes.
        limits: how much at a time.
        clock: the time in seconds.

    Attributes:
        entries: asks that have not ended, by arrival.
        meter: what was counted.
        num_begun: how many of them have been begun; readable from any thread.
    """

    def __init__(self, lm: LanguageModel, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.lm, self.limits, self._clock = lm, limits, clock
        self.entries: list[Entry] = []
        self.meter = Meter()
        self._lanes: list[Lane] = []
        self._at: dict[Row, tuple[Entry, Lane]] = {}  # where the rows are that are being written
        self.num_begun, self._num_rows_begun = 0, 0
        self._seconds = dict.fromkeys(("prefill", "draft", "score", "accept", "total"), 0.0)  # of all runs, by phase

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.entries

    def add(self, entry: Entry) -> None:
        """Take an ask into the queue."""
        entry.seen = self._num_rows_begun
        if _may_share(entry.plan, self.lm):
            own(entry.plan)
        if entry.ask.prompt_log_probs is not None:
            ids = entry.plan.rows[0].tokens[: entry.plan.rows[0].num_prompt]
            entry.reading = read_prompt(self.lm.target, ids, entry.ask.prompt_log_probs, self.limits.step_tokens)
        self.entries.append(entry)
        self.meter.taken(entry)

    def turn(self) -> None:
        """End what is cancelled, begin what has room, and advance everything by one step."""
        for entry in [entry for entry in self.entries if entry.is_cancelled]:
            self._cancel(entry)
        self._read()
        self._admit()
        for lane in self._lanes:
            self._step(lane)
        self._lanes = [lane for lane in self._lanes if lane.rows or lane.is_shared]
        self.meter.load.running = len(self._at)
        self.meter.load.waiting = sum(not entry.running for entry in self.entries)

    def fail(self, error: Exception) -> None:
        """End everything with an error, and go on without any of it."""
        entries, self.entries, self._lanes, self._at = self.entries, [], [], {}
        self.num_begun = 0
        for entry in entries:
            entry.sink.end(None, error)

    def _cancel(self, entry: Entry) -> None:
        running = [row for row, (owner, _) in self._at.items() if owner is entry]
        for lane in {self._at[row][1] for row in running}:
            lane.run.leave([row for row in running if self._at[row][1] is lane])
        for row in (*running, *entry.waiting):
            row.cancel()
        entry.waiting = []
        for row in entry.plan.rows:
            if row.finish is FinishReason.CANCELLED:
                self._hand_over(entry, row)

    def _read(self) -> None:
        """Read one chunk of the prompt that is wanted first, where its log-probabilities are asked for."""
        due = [entry for entry in self.entries if entry.reading is not None]
        if not due:
            return
        entry = min(due, key=self._order)
        try:
            next(entry.reading)  # type: ignore[arg-type]
        except StopIteration as ended:
            entry.scored, entry.reading = ended.value, None
        except Exception as error:
            self._drop(entry, error)

    def _order(self, entry: Entry) -> tuple[int, int, int]:
        """Return what is least for the ask that comes next: urgent ones first, then those with fewer rows, then old."""
        age = (self._num_rows_begun - entry.seen) // self.limits.age
        return entry.ask.priority - age, entry.running, entry.arrival

    def _admit(self) -> None:
        joining: dict[Lane, list[Row]] = {}
        while due := [entry for entry in self.entries if entry.waiting and entry.reading is None]:
            entry = min(due, key=self._order)
            # Rows that may continue each other's texts join together.
            rows = list(entry.waiting) if entry.plan.method.needs.has_forks else entry.waiting[:1]
            if self._at and len(self._at) + len(rows) > self.limits.max_rows:
                break
            lane = self._lane(entry)
            entry.waiting = entry.waiting[len(rows) :]
            entry.running += len(rows)
            self._num_rows_begun += len(rows)
            self._at.update(dict.fromkeys(rows, (entry, lane)))
            joining.setdefault(lane, []).extend(rows)
            if entry.begun is None:
                entry.seconds = dict(self._seconds)
                self.num_begun += 1
                self.meter.begun(entry, self._clock(), 0)
        for lane, rows in joining.items():
            self._join(lane, rows)

    def _join(self, lane: Lane, rows: Sequence[Row]) -> None:
        """Let rows join; if they cannot do so together, each does by itself, or fails."""
        try:
            lane.join(rows)
        except Exception as error:
            if len(rows) > 1 and lane.is_shared:
                for row in rows:
                    self._join(lane, [row])
                return
            for row in rows:
                self._fail(row, error)

    def _lane(self, entry: Entry) -> Lane:
        """Return where an ask's rows are written: beside others that want the same, or by themselves."""
        plan = entry.plan
        if _may_share(plan, self.lm):
            held = next((lane for lane in self._lanes if lane.is_shared), None)
            new: Callable[[], Run] = partial(shared_run, self.lm)
        else:
            held = next((lane for owner, lane in self._at.values() if owner is entry), None)
            longest = max(row.num_prompt + row.max_tokens for row in plan.rows)
            new = partial(new_run, self.lm, plan, longest)
        if held is None:
            held = Lane(new, self._new_text, _may_share(plan, self.lm))
            self._lanes.append(held)
        return held

    def _new_text(self, row: Row) -> TextStream | None:
        return new_text(self.lm, self._at[row][0].plan.request, row.tokens[: row.num_prompt])

    def _step(self, lane: Lane) -> None:
        run, before = lane.run, dict(lane.run.seconds)
        try:
            rows, outcome, failed = lane.step(self.limits.step_tokens)
        except NoPages as error:
            self._preempt(lane, error)
            return
        finally:
            for name, value in run.seconds.items():
                self._seconds[name] += value - before[name]
        if outcome is not None:
            self.meter.stepped(outcome)
        for row, error in failed.items():
            self._fail(row, error)
        for index, row in enumerate(rows):
            if row in self._at:
                self._hand_over(self._at[row][0], row, outcome, index)

    def _preempt(self, lane: Lane, error: NoPages) -> None:
        """Let the row that is wanted last wait until there are pages again; it goes on where it stood."""
        may_wait = [row for row in lane.rows if self._at[row][0].plan.method.guarantee is Guarantee.EXACT]
        if len(lane.rows) < 2 or not may_wait:  # there is nobody to wait for, or no way to go on
            self._fail(lane.rows[-1], error)
            return
        row = max(may_wait, key=lambda row: (self._at[row][0].ask.priority, self._at[row][0].arrival))
        entry, _ = self._at.pop(row)
        lane.run.leave([row])
        entry.running -= 1
        entry.waiting.insert(0, row)
        self.meter.load.preempted += 1

    def _hand_over(self, entry: Entry, row: Row, outcome: Outcome | None = None, index: int = 0) -> None:
        """Give the caller what is new of a row, and the results once all rows have ended."""
        is_traced = entry.ask.is_traced and outcome is not None
        piece = entry.piece(row, step_of(outcome, index) if is_traced and outcome is not None else None)
        if piece is not None:
            self.meter.wrote(entry, row, piece, self._clock())
            entry.sink.put(piece)
        if row.finish is not None:
            entry.left -= 1
            entry.running -= self._at.pop(row, None) is not None
            if not entry.left:
                self._end(entry)

    def _fail(self, row: Row, error: Exception) -> None:
        """End one row with an error; the others of its ask go on."""
        self._at[row][1].run.leave([row])
        row.cancel()
        row.finish = FinishReason.ERROR
        row.notes.append(f"{type(error).__name__}: {error}")
        self._hand_over(self._at[row][0], row)

    def _drop(self, entry: Entry, error: Exception) -> None:
        """End an ask that was not begun with an error."""
        self.entries.remove(entry)
        entry.sink.end(None, error)

    def _end(self, entry: Entry) -> None:
        self.entries.remove(entry)
        self.num_begun -= entry.begun is not None
        self.meter.ended(entry, self._clock())
        try:
            took = {name: value - entry.seconds.get(name, value) for name, value in self._seconds.items()}
            results = finish(self.lm, entry.plan, took)
        except Exception as error:
            entry.sink.end(None, error)
            return
        for result, row in zip(results, entry.plan.rows, strict=True):
            result.cached_tokens, result.prompt_log_probs = entry.cached_tokens, entry.scored
            result.steps = row.steps or []
        entry.sink.end(results)


def _may_share(plan: Plan, lm: LanguageModel) -> bool:
    """Return whether rows of other asks may be written in one run with those of this one."""
    offered = lm.target.capabilities
    is_whole = offered.is_canvas or offered.is_encoder_decoder or plan.is_fixed
    return not (is_whole or plan.request.watch is not None or plan.method.needs.has_forks)
