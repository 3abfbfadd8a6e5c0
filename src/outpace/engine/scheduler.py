"""Which rows are written now: a queue, the places that rows take, and steps that serve all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from outpace.api.healing import heal
from outpace.api.running import finish, new_text
from outpace.api.searching import Searching
from outpace.api.starting import CHUNK, new_run, own, shared_run
from outpace.engine.drafters import Drafters
from outpace.engine.entry import Entry, step_of
from outpace.engine.face import FAULT
from outpace.engine.lane import Lane, SearchLane
from outpace.engine.limits import Limits
from outpace.engine.memory import new_memory
from outpace.engine.meter import Meter
from outpace.engine.pace import Pace
from outpace.engine.reading import read_prompt
from outpace.errors import CapabilityError, ConfigError, NoPages, OutpaceError
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.text.stream import TextStream
from outpace.types import Capabilities, FinishReason, Outcome

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = ["Scheduler"]

_WINDOW = 65  # nodes that the widest of the methods scores as it is shipped, the root among them
_COUNTED = 4  # turns between two counts of the pages that are in use


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
        self.num_begun, self._num_rows_begun, self._num_turns = 0, 0, 0
        self._pace = Pace(limits.step_tokens)
        self._memory = new_memory(lm.target, limits.cache_tokens, limits.max_rows, CHUNK)
        self._drafters: Drafters | None = None
        if self._memory is not None:
            held = self._memory.pages.num_pages * self._memory.pages.page_size
            self._drafters = Drafters(held, limits.max_rows)
            self.meter.load.pages = self._memory.pages.num_pages
            self.meter.load.page_size = self._memory.pages.page_size
        self._seconds = dict.fromkeys(("prefill", "draft", "score", "accept", "total"), 0.0)  # of all runs, by phase

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.entries

    @property
    def num_free(self) -> int:
        """How many more samples may be written beside those that are; readable from any thread."""
        return max(0, self.limits.max_rows - len(self._at))

    @property
    def context(self) -> int:
        """Most tokens of prompt and text together: what the model reads, where the cache holds it beside a window."""
        offered = self.lm.target.capabilities
        if self._memory is None or not _has_shared_rows(offered):
            return offered.max_positions
        return max(1, min(offered.max_positions, self._memory.num_slots - _WINDOW))

    def add(self, entry: Entry) -> None:
        """Take an ask into the queue."""
        entry.seen = self._num_rows_begun
        if self._may_share(entry):
            entry.may_share = True
            if self._drafters is not None:
                entry.plan.models = self._drafters.share(entry.plan.models, entry.ask.salt)
            own(entry.plan)
        if entry.ask.prompt_log_probs is not None:
            ids = entry.plan.rows[0].tokens[: entry.plan.rows[0].num_prompt]
            entry.reading = read_prompt(self.lm.target, ids, entry.ask.prompt_log_probs, CHUNK)
        self.entries.append(entry)
        self.meter.taken(entry)
        if entry.plan.request.is_healed:
            self._heal(entry)

    def _heal(self, entry: Entry) -> None:
        """Draw the tokens at the end of an ask's prompts anew; a text that ends with them has ended."""
        try:
            heal(entry.lm, entry.plan)
        except Exception as error:
            self._drop(entry, error)
            return
        ended = [row for row in entry.waiting if row.finish is not None]
        entry.waiting = [row for row in entry.waiting if row.finish is None]
        for row in ended:
            self._hand_over(entry, row)

    def check(self, entry: Entry) -> None:
        """Refuse what can never be written here.

        Raises:
            ConfigError: the cache does not hold so long a text.
        """
        search = entry.plan.search
        if search is not None and search.num_rows > self.limits.max_rows:
            raise ConfigError(
                f"The search holds {search.num_rows} texts, but the engine writes {self.limits.max_rows} at a time.",
                "Ask for a smaller search, or give the engine more rows.",
            )
        if self._memory is None or not self._may_share(entry):
            return
        row = entry.plan.rows[0]
        most = row.num_prompt + row.max_tokens + entry.width
        if most > (held := self._memory.num_slots):
            raise ConfigError(
                f"The text may have {most} tokens with its drafts, but the cache holds {held}.",
                "Ask for fewer tokens, or give the engine a larger cache.",
            )

    def _may_share(self, entry: Entry) -> bool:
        """Return whether rows of other asks may be written in one run with those of this one."""
        plan, is_own = entry.plan, entry.lm.target is not self.lm.target
        is_whole = is_own or plan.is_fixed or entry.has_forks or plan.request.watch is not None
        return not is_whole and _has_shared_rows(self.lm.target.capabilities)

    def turn(self) -> None:
        """End what is cancelled, begin what has room, and advance everything by one step."""
        for entry in [entry for entry in self.entries if entry.is_cancelled]:
            self._cancel(entry)
        self._read()
        self._admit()
        for lane in self._lanes:
            self._step(lane)
        self._lanes = [lane for lane in self._lanes if lane.rows or lane.is_shared]
        self._num_turns += 1
        if self._memory is not None and (self._num_turns % _COUNTED == 0 or not self._at):
            shared = next((lane.run for lane in self._lanes if lane.is_shared), None)
            self.meter.load.pages_used = self._memory.count(shared)
        self.meter.load.running = len(self._at)
        self.meter.load.waiting = sum(not entry.running for entry in self.entries)

    def fail(self, error: Exception) -> None:
        """End everything with an error, and go on without any of it."""
        entries, self.entries, self._lanes, self._at = self.entries, [], [], {}
        self.num_begun = 0
        for entry in entries:
            self._forget(entry.plan.rows)
            entry.sink.end(None, error)

    def _forget(self, rows: Sequence[Row]) -> None:
        """Let go of what is kept for rows that have ended."""
        if self._memory is not None:
            for row in rows:
                self._memory.forget(row)

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
        """Begin what has room, the most urgent first; nobody overtakes who waits for pages."""
        joining: dict[Lane, list[Row]] = {}
        passed, promised = set[Entry](), 0
        while len(self._at) < self.limits.max_rows:
            due = [one for one in self.entries if one.waiting and one.reading is None and one not in passed]
            if not due:
                break
            entry = min(due, key=self._order)
            # Rows that may continue each other's texts join together.
            rows = list(entry.waiting) if entry.has_forks else entry.waiting[:1]
            if self._at and len(self._at) + len(rows) > self.limits.max_rows:
                break
            known = 0
            if entry.may_share and self._memory is not None:
                known = self._memory.begin(rows[0], entry.key)
                if self._is_being_read(entry, rows[0], known):
                    rows[0].cached = None
                    passed.add(entry)
                    continue
                if self._at and not self._has_room(entry, rows[0], known, promised):
                    rows[0].cached = None
                    break
                promised += self._memory.new(entry.most(rows[0]), known)
            lane = self._lane(entry)
            entry.waiting = entry.waiting[len(rows) :]
            entry.running += len(rows)
            self._num_rows_begun += len(rows)
            self._at.update(dict.fromkeys(rows, (entry, lane)))
            joining.setdefault(lane, []).extend(rows)
            if entry.begun is None:
                entry.seconds = dict(self._seconds)
                self.num_begun += 1
                self.meter.begun(entry, self._clock(), min(known, rows[0].num_prompt))
        for lane, rows in joining.items():
            self._join(lane, rows)

    def _is_being_read(self, entry: Entry, row: Row, known: int) -> bool:
        """Return whether a row is being read whose prompt another one begins with, which then finds it in the cache."""
        if self._memory is None or entry.key is None:
            return False
        reading = [one for one, (owner, _) in self._at.items() if owner.may_share and not one.written]
        return any(self._memory.is_shared(row, one, entry.key, known) for one in reading)

    def _has_room(self, entry: Entry, row: Row, known: int, promised: int) -> bool:
        """Return whether pages suffice for one more row, beside what running ones may yet take and was promised."""
        assert self._memory is not None  # asked for where there are pages
        lane = next((lane for lane in self._lanes if lane.is_shared), None)
        running = [] if lane is None else [self._at[row][0].most(row) for row in lane.rows]
        missing = 0 if lane is None else self._memory.missing(lane.run, running) + len(running)
        return self._memory.has(promised + missing + self._memory.new(entry.most(row), known))

    def _join(self, lane: Lane, rows: Sequence[Row]) -> None:
        """Let rows join; if they cannot do so together, each does by itself, or fails."""
        try:
            lane.join(rows)
        except Exception as error:
            lane.run.leave([row for row in rows if row in lane.rows])
            if len(rows) > 1 and lane.is_shared:
                for row in rows:
                    self._join(lane, [row])
                return
            for row in rows:
                self._fail(row, error)
            return
        if lane.is_shared and self._memory is not None:
            for row in rows:
                try:
                    self._memory.restore(row, lane.run)
                except NoPages:
                    self._put_back(row)

    def _lane(self, entry: Entry) -> Lane:
        """Return where an ask's rows are written: beside others that want the same, or by themselves."""
        plan = entry.plan
        if entry.may_share:
            held = next((lane for lane in self._lanes if lane.is_shared), None)
            new: Callable[[], Run] = self._new_shared
        else:
            held = next((lane for owner, lane in self._at.values() if owner is entry), None)
            longest = max(row.num_prompt + row.max_tokens for row in plan.rows)
            new = partial(new_run, entry.lm, plan, longest)
        if held is None:
            held = (
                Lane(new, self._new_text, entry.may_share)
                if plan.search is None
                else SearchLane(new, partial(Searching, entry.lm, plan))
            )
            self._lanes.append(held)
        return held

    def _new_shared(self) -> Run:
        memory = self._memory
        if memory is None:
            return shared_run(self.lm)
        return shared_run(self.lm, memory.pages, memory.store)

    def _new_text(self, row: Row) -> TextStream | None:
        return new_text(self.lm, self._at[row][0].plan.request, row.tokens[: row.num_prompt], row.covered)

    def _step(self, lane: Lane) -> None:
        budget = self._pace.budget(len(lane.run.batch.rows))
        self._make_room(lane, budget)
        if not lane.rows:
            return
        run, before, unread = lane.run, dict(lane.run.seconds), lane.unread
        try:
            rows, outcome, failed = lane.step(budget)
        except NoPages as error:  # one more has to wait, or cannot go on
            if not self._preempt(lane):
                self._fail(lane.rows[-1], error)
            return
        finally:
            for name, value in run.seconds.items():
                self._seconds[name] += value - before[name]
        self._pace.add(run.seconds["total"] - before["total"], len(rows), unread - lane.unread)
        if outcome is not None:
            self.meter.stepped(outcome)
        for row, why in failed.items():
            self._fail(row, why)
        for index, row in enumerate(rows):
            if row in self._at:
                self._keep_prompt(lane, row)
                self._hand_over(self._at[row][0], row, outcome, index)

    def _keep_prompt(self, lane: Lane, row: Row) -> None:
        """Let others begin with a prompt that was just read; what is written is kept when the row leaves."""
        entry, cache = self._at[row][0], lane.run.batch.cache
        if entry.is_kept or self._memory is None or cache is None or row.finish is not None:
            return
        entry.is_kept = True
        if row in lane.run.batch.rows:
            self._memory.store(row, cache, lane.run.batch.rows.index(row))

    def _make_room(self, lane: Lane, budget: int) -> None:
        """Let rows wait until the pages suffice for the others; before a step, so that none is begun in vain."""
        memory = self._memory
        while memory is not None and lane.is_shared and lane.rows:
            # The run drafts only as far as pages go; a text that depends on its drafts gets the room for all of them.
            asked = (self._at[row][0] for row in lane.rows)
            width = max((entry.width for entry in asked if not entry.may_wait), default=1)
            if memory.has(memory.needed(lane.run, width, budget)):
                return
            if not self._preempt(lane):
                return

    def _preempt(self, lane: Lane) -> bool:
        """Let the row that is wanted last wait until there are pages again; return whether there was one that may."""
        may_wait = [row for row in lane.rows if self._at[row][0].may_wait]
        if len(lane.rows) < 2 or not may_wait:
            return False
        row = max(may_wait, key=lambda row: (self._at[row][0].ask.priority, self._at[row][0].arrival))
        cache = lane.run.batch.cache
        if self._memory is not None and cache is not None:
            self._memory.save(row, cache, lane.rows.index(row))
        self._put_back(row)
        self.meter.load.preempted += 1
        return True

    def _put_back(self, row: Row) -> None:
        """Let a row leave and wait, before those of its ask that were not begun."""
        entry, lane = self._at.pop(row)
        lane.run.leave([row])
        entry.running -= 1
        entry.waiting.insert(0, row)

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
            self._forget([row])
            if not entry.left:
                self._end(entry)

    def _fail(self, row: Row, error: Exception) -> None:
        """End one row with an error; the others of its ask go on."""
        self._at[row][1].run.leave([row])
        row.cancel()
        row.finish = FinishReason.ERROR
        row.notes.append(_told(error))
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
            results = finish(entry.lm, entry.plan, took)
        except Exception as error:
            entry.sink.end(None, error)
            return
        for result, row in zip(results, entry.plan.shown, strict=True):
            result.cached_tokens, result.prompt_log_probs = entry.cached_tokens, entry.scored
            result.steps = row.steps or []
        entry.sink.end(results)


def _told(error: Exception) -> str:
    """Return what a failed row's notes say: what its caller can change, or that it is the engine's fault."""
    if isinstance(error, ConfigError | CapabilityError):
        return f"{error} {error.hint}".strip()
    return f"{FAULT} ({error if isinstance(error, OutpaceError) else f'{type(error).__name__}: {error}'})."


def _has_shared_rows(offered: Capabilities) -> bool:
    """Return whether a model's rows can be written in one run at all."""
    return not (offered.is_canvas or offered.is_encoder_decoder)
