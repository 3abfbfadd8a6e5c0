"""A fleet of replicas as discrete events: requests arrive, are routed, and each replica steps its batch.

A step's seconds come from measured cost curves alone; the scheduler is that of the engine in small: chunked prefill
beside decoding under a budget of tokens per step, rows that join and leave at any step, prompts that share a beginning.
"""

from __future__ import annotations

import heapq
import itertools
import random
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from outpace.errors import ConfigError
from outpace.schedule.cost import CostCurve
from outpace.server.routing import route

__all__ = ["ROUTES", "FleetSettings", "Job", "StepTimes", "expected_tokens", "simulate"]

ROUTES = ("random", "least", "prefix")


@dataclass(slots=True)
class Job:
    """A request, and what became of it; times in seconds since the beginning.

    Attributes:
        at: when it arrives.
        prompt, output: tokens; one output token comes with the last step of the prompt.
        group: whose beginning its prompt shares; -1 = nobody's.
        shared: tokens of that beginning.
        begun, first, ended: when it got a row, its first token, its last.
        replica: where it ran.
        cached: prompt tokens that were found in the cache.
    """

    at: float
    prompt: int
    output: int
    group: int = -1
    shared: int = 0
    begun: float = -1.0
    first: float = -1.0
    ended: float = -1.0
    replica: int = -1
    cached: int = 0
    due: int = 0  # prompt tokens still to be read
    left: int = 0  # output tokens still to be written

    @property
    def between(self) -> float:
        """Seconds per token after the first; 0 where there is none."""
        return (self.ended - self.first) / (self.output - 1) if self.output > 1 else 0.0


class StepTimes:
    """Seconds of a step by its rows and tokens, from curves measured with different numbers of rows.

    Args:
        curves: at least one; between two, what they say is mixed in proportion to the rows.

    Raises:
        ConfigError: there is none, or two have the same number of rows.
    """

    def __init__(self, curves: Sequence[CostCurve]) -> None:
        self.curves = sorted(curves, key=lambda curve: curve.batch)
        self._rows = [curve.batch for curve in self.curves]
        if not curves or len(set(self._rows)) < len(curves):
            raise ConfigError("Each curve needs a number of rows of its own.", "Measure with outpace tune --batch N.")
        self._known = dict[tuple[int, int], float]()

    def __call__(self, rows: int, tokens: int) -> float:
        """Return the seconds of a forward of `tokens` tokens for so many rows, all together."""
        found = self._known.get((rows, tokens))
        if found is None:
            found = self._known[rows, tokens] = self._mix(rows, tokens)
        return found

    def _mix(self, rows: int, tokens: int) -> float:
        at = bisect_left(self._rows, rows)
        if at == 0 or at == len(self._rows):
            return _all(self.curves[min(at, len(self._rows) - 1)], tokens)
        low, high = self._rows[at - 1], self._rows[at]
        share = (rows - low) / (high - low)
        return (1 - share) * _all(self.curves[at - 1], tokens) + share * _all(self.curves[at], tokens)


def _all(curve: CostCurve, tokens: int) -> float:
    """Return the seconds of so many tokens, all rows together; fewer tokens than rows cost what the curve begins with.

    `CostCurve.seconds_for_all` rounds to whole tokens per row; here a row more is a row more.
    """
    low = tokens // curve.batch
    share = tokens / curve.batch - low
    if low < 1:
        return curve.seconds_for(1)
    return (1 - share) * curve.seconds_for(low) + share * curve.seconds_for(low + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """What the replicas are.

    Attributes:
        replicas: how many.
        rows: samples side by side, per replica.
        budget: tokens per step; what decoding leaves of it reads prompts, one token at least.
        routing: "random", "least" (fewest requests under way) or "prefix" (see `outpace.server.routing`).
        slack: of "prefix": how many more requests than the least loaded replica one may have.
        cache: beginnings that a replica keeps, those used last.
        draft_len: tokens drafted per row and step; 0 = none.
        acceptance: probability that a draft is kept, given that those before it were.
        draft_cost: of drafting a token for all rows, as a share of a plain step of one row.
        step_s, row_s: seconds of a step beside its forward, and those for each row in it (sampling, text, streams).
        is_adaptive: each step drafts as many tokens, up to draft_len, as promise most tokens per second.

    Raises:
        ConfigError: a value is out of range.
    """

    replicas: int = 1
    rows: int = 32
    budget: int = 512
    routing: str = "prefix"
    slack: float = 8.0
    cache: int = 64
    draft_len: int = 0
    acceptance: float = 0.0
    draft_cost: float = 0.0
    step_s: float = 0.0
    row_s: float = 0.0
    is_adaptive: bool = True

    def __post_init__(self) -> None:
        for name, least in (("replicas", 1), ("rows", 1), ("budget", 1), ("slack", 0), ("cache", 0), ("draft_len", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}.", f"{name} must be {least} or more.")
        if self.routing not in ROUTES:
            raise ConfigError(f"There is no routing {self.routing!r}.", f"Use one of {', '.join(ROUTES)}.")
        if min(self.step_s, self.row_s) < 0:
            raise ConfigError("A step takes less than no time.", "Give 0 or more.")
        if not 0 <= self.acceptance < 1 or self.draft_cost < 0:
            raise ConfigError(
                "The acceptance is no probability below 1, or the cost of drafting below 0.",
                "Give 0 to 0.99, and 0 or more.",
            )


def expected_tokens(length: int, acceptance: float) -> float:
    """Return how many tokens a row's step makes final, on average: (1 - a^(k+1)) / (1 - a).

    Leviathan et al., Fast Inference from Transformers via Speculative Decoding (2023), equation 1.
    """
    return float((1 - acceptance ** (length + 1)) / (1 - acceptance))


@dataclass(slots=True)
class _Replica:
    """One engine: a queue, rows, a cache of beginnings, and perhaps a step under way."""

    number: int
    waiting: deque[Job] = field(default_factory=deque)
    running: list[Job] = field(default_factory=list)
    cached: OrderedDict[int, None] = field(default_factory=OrderedDict)
    reads: list[tuple[Job, int]] = field(default_factory=list)  # of the step under way: prompt tokens per row
    length: int = 0  # drafted per row in it
    is_busy: bool = False
    busy_s: float = 0.0

    @property
    def load(self) -> int:
        return len(self.waiting) + len(self.running)


def simulate(
    jobs: Iterable[Job], times: StepTimes, settings: FleetSettings, source: random.Random
) -> tuple[list[Job], float]:
    """Run requests through a fleet until all have ended.

    Args:
        jobs: in the order of their arrival.
        times: seconds of a step.
        settings: of the fleet.
        source: of the random routes and of what becomes of drafts.

    Returns:
        The requests, with their times, and the share of time in which a replica steps, on average.
    """
    arrivals = list(jobs)
    fleet = [_Replica(number) for number in range(settings.replicas)]
    order = itertools.count()  # of what happens at one time
    events: list[tuple[float, int, _Replica]] = []  # ends of steps

    def begin(replica: _Replica, now: float) -> None:
        seconds = _begin_step(replica, times, settings, now)
        if seconds:
            replica.busy_s += seconds
            heapq.heappush(events, (now + seconds, next(order), replica))

    at, now = 0, 0.0
    while at < len(arrivals) or events:
        if events and (at == len(arrivals) or events[0][0] <= arrivals[at].at):
            now, _, replica = heapq.heappop(events)
            _end_step(replica, settings, now, source)
            begin(replica, now)
            continue
        job, at = arrivals[at], at + 1
        now, job.due, job.left = job.at, job.prompt, job.output
        replica = fleet[_choose(job, fleet, settings, source)]
        job.replica = replica.number
        replica.waiting.append(job)
        if not replica.is_busy:
            begin(replica, now)
    return arrivals, sum(replica.busy_s for replica in fleet) / (len(fleet) * now) if now else 0.0


def _choose(job: Job, fleet: Sequence[_Replica], settings: FleetSettings, source: random.Random) -> int:
    """Return the number of the replica that a request goes to."""
    if settings.routing == "random" or len(fleet) == 1:
        return source.randrange(len(fleet))
    least = min(replica.load for replica in fleet)
    if settings.routing == "prefix" and job.group >= 0:
        loads = {str(replica.number): float(replica.load) for replica in fleet}
        return int(route(str(job.group).encode(), loads, settings.slack)[0])
    return source.choice([replica.number for replica in fleet if replica.load == least])


def _begin_step(replica: _Replica, times: StepTimes, settings: FleetSettings, now: float) -> float:
    """Fill rows from the queue and lay out a step; return its seconds, 0 where there is nothing to do."""
    while replica.waiting and len(replica.running) < settings.rows:
        job = replica.waiting.popleft()
        job.begun = now
        if job.group in replica.cached:
            job.cached = min(job.shared, job.prompt - 1)
            job.due -= job.cached
            replica.cached.move_to_end(job.group)
        replica.running.append(job)
    replica.is_busy = bool(replica.running)
    if not replica.running:
        return 0.0
    decoding = sum(not job.due for job in replica.running)
    replica.length = _draft_length(decoding, times, settings)
    room = max(settings.budget - decoding * (1 + replica.length), 1)
    replica.reads = []
    for job in replica.running:
        if job.due and room:
            replica.reads.append((job, min(job.due, room)))
            room -= replica.reads[-1][1]
    read = sum(tokens for _, tokens in replica.reads)
    return _seconds(decoding, replica.length, len(replica.reads), read, times, settings)


def _seconds(decoding: int, length: int, reading: int, read: int, times: StepTimes, settings: FleetSettings) -> float:
    """Return what a step takes that drafts so many tokens for each row that decodes, and reads so many of prompts."""
    forward = times(decoding + reading, decoding * (1 + length) + read)
    drafting = settings.draft_cost * length * times(1, 1)
    return forward + drafting + settings.step_s + settings.row_s * (decoding + reading)


def _draft_length(decoding: int, times: StepTimes, settings: FleetSettings) -> int:
    if not decoding or not settings.draft_len:
        return 0
    if not settings.is_adaptive:
        return settings.draft_len

    def speed(length: int) -> float:
        return expected_tokens(length, settings.acceptance) / _seconds(decoding, length, 0, 0, times, settings)

    return max(range(settings.draft_len + 1), key=speed)


def _end_step(replica: _Replica, settings: FleetSettings, now: float, source: random.Random) -> None:
    """Make final what the step wrote, and let go of what has ended."""
    read = {id(job): tokens for job, tokens in replica.reads}
    for job in replica.running:
        if id(job) in read:
            job.due -= read[id(job)]
            if job.due:
                continue
            job.first, job.left = now, job.left - 1
            _keep(replica, job, settings.cache)
        elif job.due:  # it waits for room
            continue
        else:
            kept = 0
            while kept < replica.length and source.random() < settings.acceptance:
                kept += 1
            job.left -= min(job.left, kept + 1)
        if not job.left:
            job.ended = now
    replica.running = [job for job in replica.running if job.ended < 0]


def _keep(replica: _Replica, job: Job, most: int) -> None:
    if job.group >= 0 and most:
        replica.cached[job.group] = None
        replica.cached.move_to_end(job.group)
        while len(replica.cached) > most:
            replica.cached.popitem(last=False)
