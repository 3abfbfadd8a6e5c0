"""The one decoding loop: propose, score, accept, commit.

A `Run` owns prefill, the cache, end of text, stops, per-row finish, counting, timing and randomness. It knows no
method: what is proposed and what is kept is the method's. Rows join and leave between two steps, at their own pace.

Longer than most: a step, what comes before it (prompts) and what comes after it stand in one place, in order.
"""

from __future__ import annotations

import copy
import functools
import itertools
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import TYPE_CHECKING, Any

import torch

from outpace.cache import Cache, PagedCache, Pages
from outpace.errors import ConfigError
from outpace.run.batch import Batch, bind
from outpace.run.beside import padded
from outpace.run.commit import append, fit, kept, read_back, record, sound
from outpace.run.endings import end_over, lay_aside
from outpace.run.layout import lay_out, soften
from outpace.run.prefill import catch_up, next_pieces, read_pieces
from outpace.run.room import affordable, check_room
from outpace.run.row import Row
from outpace.run.threads import shared
from outpace.sampling import Sampler, Sampling
from outpace.types import Adapter, Context, Counter, Decision, Needs, Outcome, Proposal, Scores, View

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["Run"]


_NUMBERS = itertools.count()  # of sources, where the adapter gives none


class Run:
    """Rows being written by one method on one target.

    Args:
        target: the model.
        method: what to propose and what to keep (an `outpace.methods.Method`).
        settings: sampling settings of all rows.
        capacity: cache entries per row: the longest text plus the widest window.
        models: other models by role.
        memory: what outlives the run, for methods that keep one.
        record: "log_probs", "margins" and "entropies" are noted per token when named.
        num_top: how many of the likeliest tokens are noted per token.
        chunk: prompt tokens per prefill forward; borders lie at multiples of it, whatever was drafted before.
        width: every scoring forward has exactly this many window nodes (batch-invariant mode); 0 = as proposed.
        device: where tokens are laid out.
        tokenizers: by role, for methods that work on text.
        pages: where the target's entries lie, of its `new_pool`; None = each row has slots of its own.
        watch: called after every step with the rows that took part and its Outcome, reports included (traces); it may
            only read.
        on_leave: called with every row that leaves, the cache and its place there, while its entries are still held.
    """

    def __init__(
        self,
        target: Adapter,
        method: Any,
        settings: Sampling,
        *,
        capacity: int,
        models: Mapping[str, Adapter] | None = None,
        memory: Any = None,
        record: Sequence[str] = (),
        num_top: int = 0,
        chunk: int = 256,
        width: int = 0,
        device: torch.device | str = "cpu",
        tokenizers: Mapping[str, Tokenizer] | None = None,
        watch: Callable[[Sequence[Row], Outcome], None] | None = None,
        pages: Pages | None = None,
        on_leave: Callable[[Row, Cache, int], None] | None = None,
    ) -> None:
        self.capacity, self.models, self.memory = capacity, dict(models or {}), memory
        self.target = functools.reduce(lambda one, model: model.beside(one), self.models.values(), target)
        self.method, self.settings = method, settings
        self.record, self.chunk, self.width, self.device = tuple(record), chunk, width, torch.device(device)
        self.num_top, self.on_leave = num_top, on_leave
        self.tokenizers, self.watch, self.pages = dict(tokenizers or {}), watch, pages
        self.counters = {"target": Counter(), "draft": Counter()}
        self.seconds = {"prefill": 0.0, "draft": 0.0, "score": 0.0, "accept": 0.0, "total": 0.0}
        self.num_steps = 0
        # Pending tokens that a step forwards with its window; more are forwarded before it.
        self.tail = getattr(method, "tail", 1)
        self.last: Outcome | None = None
        self.batch = Batch(settings)
        self._needs = _with_reads(method.needs, self.models)
        self._is_mixed = getattr(method, "is_mixed", False)  # rows may have settings and methods of their own
        self._reading: list[Row] = []  # rows in line, in the step at hand
        self._has_records = bool(record or num_top)

    @property
    def rows(self) -> list[Row]:
        """The rows still being written, and those whose prompts are still to be read."""
        return [*self.batch.rows, *self.batch.waiting] if self.batch.line else self.batch.rows

    def join(self, rows: Sequence[Row], *, in_line: bool = False) -> None:
        """Add rows; their prompts are prefilled in the next step, or beside the steps of others.

        Args:
            rows: what is to be written; those that come together begin to be written together.
            in_line: let their prompts be read behind those that came before, as far as the budget of each step goes.
                Only a causal target with one way to turn positions, outside batch-invariant mode, reads beside steps.

        Raises:
            ConfigError: a row is empty or does not fit the run's capacity, or wants what the run's method cannot do.
        """
        rows = [row for row in rows if row.finish is None]
        if any(not row.tokens for row in rows):
            raise ConfigError("The prompt is empty.", "Give at least one token.")
        if any(row.num_prompt + row.max_tokens > self.capacity for row in rows):
            raise ConfigError("A row does not fit the run's cache.", "Give the run a larger capacity.")
        if not self._is_mixed and any(row.wanted is not None or row.settings is not None for row in rows):
            raise ConfigError("A row has a method or settings of its own.", "Run it with the method `mixed`.")
        if not rows:
            return
        self._has_records |= any(row.record or row.num_top or row.num_choices for row in rows)
        offered = self.target.capabilities
        in_line = in_line and offered.attention == "causal" and not (offered.turns_at or self.width)
        # Side by side, every row stages as many entries as the widest one, prefill chunks included.
        slots = self.capacity + (self.chunk if in_line or len(rows) + len(self.rows) > 1 else 0)
        cache = self._new_cache(rows, slots)
        if self.width:  # every slot is summed over, from the first step on
            cache.has_fixed_extent = True
            cache.reserve(slots)
        self.target.note_prompts(cache, [row.num_prompt for row in rows])
        sources = [row.source or [] for row in rows]
        if offered.is_encoder_decoder and (self._is_mixed or not self._needs.has_own_pass):
            self._encode(rows, sources, cache)
        texts, sampler = [row.tokens for row in rows], bind(self.settings, rows)
        given = (self.models, self.counters, self.memory, cache, self.tokenizers, sources)
        canvases = [row.canvas or [-1] * row.room for row in rows] if offered.is_canvas else []
        wanted = [row.wanted for row in rows] if self._is_mixed else []
        notes = [row.notes for row in rows]
        context = Context(self.target, texts, slots, sampler, *given, canvases, wanted, self._is_mixed, notes)
        before = [(counter.nfe, counter.positions) for counter in self.counters.values()]
        state = self.method.start(context)
        self._count(rows, before, {})  # of methods that run a network before the first step
        self.batch.join(rows, cache, state, in_line=in_line)
        if self._is_mixed:
            self._sum_needs()

    def _encode(self, rows: Sequence[Row], sources: list[list[int]], cache: Cache) -> None:
        """Run the encoder once for rows of a group, which have one source."""
        first: dict[object, int] = {}
        lead = [first.setdefault(row if row.group is None else row.group, at) for at, row in enumerate(rows)]
        if any(sources[at] != source for at, source in zip(lead, sources, strict=True)):
            raise ConfigError("Rows of one group have different sources.", "Give each source a group of its own.")
        leads, began = sorted(set(lead)), time.perf_counter()
        self.target.encode([sources[at] for at in leads], cache)
        for phase in ("prefill", "total"):
            self.seconds[phase] += time.perf_counter() - began
        if len(leads) < len(rows):
            places = [leads.index(at) for at in lead]
            index, numbers = (
                torch.tensor(places, device=cache.device),
                cache.origins or tuple(next(_NUMBERS) for _ in leads),
            )
            cache.extra = [values.index_select(0, index) for values in cache.extra]
            cache.origins = tuple(numbers[place] for place in places)

    def _new_cache(self, rows: Sequence[Row], slots: int) -> Cache:
        """Return a cache for joining rows, on pages where there are any: those that hold what a row begins with too."""
        if self.pages is None:
            return self.target.new_cache(len(rows), slots, self.counters["target"])
        cache = self.pages.new_cache(len(rows), self.counters["target"], slots)
        for at, row in enumerate(rows):
            if row.cached is not None:
                cache.attach(at, *row.cached)
                row.cached = None
        return cache

    def _sum_needs(self) -> None:
        wishes = {id(row.wanted): row.wanted for row in self.rows if row.wanted is not None}
        needs = [_with_reads(one.method.needs, one.models) for one in wishes.values()]
        self._needs = functools.reduce(operator.or_, needs, _with_reads(self.method.needs, self.models))

    def leave(self, gone: Sequence[Row]) -> None:
        """Take rows out between two steps; each keeps its tokens and may join a run again."""
        if self.on_leave is not None and self.batch.cache is not None:
            leaving = set(gone)
            for place, row in enumerate(self.rows):
                if row in leaving:
                    self.on_leave(row, self.batch.cache, place)
        self.batch.leave(gone)
        if self._is_mixed:
            self._sum_needs()

    def sync(self, prefix: Sequence[Sequence[int]], sampler: Sampler | None = None) -> None:
        """Make the rows hold these texts; of the cache stays what a row's old text and its new one have in common.

        For a run that drafts: what it wrote beyond the texts that came of it is withdrawn. The method's state stays as
        it is, so it must not rest on what may be withdrawn; a row's length, prompt and counts are the caller's.

        Args:
            prefix: tokens per row, one at least.
            sampler: the rows' from now on; None = their own, constraints told from the new texts.
        """
        assert self.batch.cache is not None or not prefix  # rows and cache come together
        valid = []
        for row, text in zip(self.rows, prefix, strict=True):
            valid.append(min(_num_shared(row.tokens, text), len(text) - 1))  # the last token always stays pending
            row.tokens, row.constraint, row.state = list(text), None, None
        if self.batch.cache is not None:
            self.batch.cache.truncate(valid)
        self.batch.sampler = bind(self.settings, self.rows) if sampler is None else sampler

    def read(self) -> None:
        """Read all prompts, and take no step."""
        began = time.perf_counter()
        before = [(counter.nfe, counter.positions) for counter in self.counters.values()]
        with shared(self.target.is_invariant):
            self._prefill()
        self._count(self.rows, before, {"total": time.perf_counter() - began})

    def part(self, index: Sequence[int]) -> Run:
        """Return a run of some rows, in that order, with copies of what is theirs (a row may repeat)."""
        other = copy.copy(self)
        other.batch = self.batch.part(index)
        return other

    def step(self, budget: int | None = None) -> list[tuple[Row, list[int]]]:
        """Advance every row by one step; return what each emitted. Finished rows have left when it returns.

        Args:
            budget: most prompt tokens of rows in line that are read with it; None = all, before it. Where a target's
                results depend on how a prompt is cut, whole chunks are read, one at least.

        Raises:
            ConfigError: the run has no rows.
            NoPages: there are too few for the next tokens of all rows; nothing has changed.
        """
        with shared(self.target.is_invariant):
            return self._step(budget)

    def _step(self, budget: int | None) -> list[tuple[Row, list[int]]]:
        began = time.perf_counter()
        before = [(counter.nfe, counter.positions) for counter in self.counters.values()]
        self._reading = []
        batch, (cache, pieces) = self.batch, self._prefill(budget)
        if not batch.rows:  # prompts are still being read
            self._count(self._reading, before, {"total": time.perf_counter() - began})
            return []
        rows, view = list(batch.rows), batch.view(self.num_steps, self.last)
        if isinstance(cache, PagedCache):  # before anybody drafts for a step that cannot be made
            check_room(cache, [row.tokens for row in rows], pieces)
        # 1 propose, 2 gather pending, 3 lay out and pad
        t0 = time.perf_counter()
        proposal = self.method.propose(view, batch.state)
        pending = [[] if proposal.is_whole else row.tokens[n:] for row, n in zip(rows, cache.lengths, strict=False)]
        pending += pieces
        proposal = self._fit(proposal, pending, cache)
        t1 = time.perf_counter()
        window = padded(proposal, len(pieces)) if pieces else proposal
        layout = lay_out(pending, cache.lengths, window)
        # 4 score
        given = (layout.tokens, layout.position, layout.visible, cache, layout.ask)
        inputs = soften(self.target, layout, window, batch.all_prompts, cache.lengths)
        scores = self.target.score(*given, outputs=self._needs.outputs, inputs=inputs)
        if pieces:
            scores = scores.part(range(len(rows)), scores.logits.shape[1])
        t2 = time.perf_counter()
        # 5 accept, and the step's one synchronisation
        decision = self.method.accept(proposal, scores, view, batch.state)
        host = read_back(decision)
        t3 = time.perf_counter()
        # 6 lay ended texts aside, continue other rows, cut token by token
        if decision.endings is not None:
            self._lay_aside(rows, proposal, decision, scores, view)
        if host.source is not None:
            cache = self._fork(host.source)
        lengths, starts = host.follow(proposal.drafts or proposal.length), host.follow(layout.start[: len(rows)])
        origins = repeat(proposal.origin) if isinstance(proposal.origin, str) else host.follow(proposal.origin)
        decided = zip(rows, host.tokens, host.path, host.is_recovered, lengths, origins, strict=False)
        counts = [append(*one) for one in decided]
        emitted = [tokens[:count] for tokens, count in zip(host.tokens, counts, strict=True)]
        path = [nodes[:count] for nodes, count in zip(host.path, counts, strict=True)]
        accepted = [sum([n >= 0 for n in nodes]) for nodes in path]
        # 7 keep
        if decision.keep is None:
            cache.keep([*kept(starts, host.path, counts), *(range(len(piece)) for piece in pieces)])
        else:
            cache.retain(decision.keep)
        # 8 observe, emit, count
        seconds = {"draft": t1 - t0, "score": t2 - t1, "accept": t3 - t2}
        read = sum(map(len, pieces)) if pieces else 0
        self.last = Outcome(emitted, accepted, path, proposal, decision, scores, seconds=seconds, read=read)
        if self._has_records:
            record(self.record, self.num_top, rows, self.last, view)
        self._observe(rows, self.last)
        if pieces:
            self._has_read(pieces, None)
        if gone := [row for row in rows if row.finish is not None or row.is_paused]:
            self.leave(gone)
        self._count(rows + self._reading, before, {**seconds, "total": time.perf_counter() - began})
        return list(zip(rows, emitted, strict=True))

    def _fork(self, source: list[int]) -> Cache:
        if not self._needs.has_forks:
            raise ConfigError(f"The method {self.method.name!r} forks rows unasked.", "Say so in needs.has_forks.")
        return self.batch.fork(source)

    def _lay_aside(self, rows: list[Row], proposal: Proposal, decision: Decision, scores: Scores, view: View) -> None:
        if not self._needs.has_forks:
            raise ConfigError(
                f"The method {self.method.name!r} lays texts aside unasked.", "Say so in needs.has_forks."
            )
        lay_aside(rows, proposal, decision, scores, view, (self.record, self.num_top) if self._has_records else None)

    def _observe(self, rows: list[Row], last: Outcome) -> None:
        """Show the step to the method, and to whoever watches."""
        batch, decision = self.batch, last.decision
        if decision is not None and decision.score is not None:
            for row, score in zip(rows, decision.score.tolist(), strict=True):
                row.score = score
        self.num_steps += 1
        view = batch.view(self.num_steps, last)
        if self.watch is not None:
            last.reports = self.method.report(last, view, batch.state)
        batch.state = self.method.observe(last, view, batch.state)
        if decision is not None and decision.is_over is not None:  # what the method follows is the text that goes on
            end_over(rows, decision)
        if self.watch is not None:
            self.watch(rows, last)

    def _prefill(self, budget: int | None = None) -> tuple[Cache, list[list[int]]]:
        """Read prompts: of the rows all, of those in line what the budget allows; return what is left to the step.

        Where there are rows to decode, a piece of a prompt in line is forwarded together with them.
        """
        batch, needs, began = self.batch, self._needs, time.perf_counter()
        if batch.cache is None:
            raise ConfigError("The run has no rows.", "Call join first.")
        if batch.line:
            self._seat(everybody=budget is None)
        self._catch_up(batch.cache)
        pieces: list[list[int]] = []
        if batch.line:
            first = len(batch.rows)
            texts, held = [row.tokens for row in batch.waiting], batch.cache.lengths[first:]
            most = max(budget or 0, 0 if first else 1)
            pieces = next_pieces(texts, held, most, self.chunk, is_free=self.target.is_invariant)
            self._reading = [row for row, piece in zip(batch.waiting, pieces, strict=True) if piece]
            if needs.outputs or needs.has_prefill_logits or not first:
                given = (self.target, batch.cache, first, pieces, batch.all_prompts)
                self._has_read(pieces, read_pieces(*given, has_logits=needs.has_prefill_logits, outputs=needs.outputs))
                pieces = [[] for _ in batch.waiting]
        self.seconds["prefill"] += time.perf_counter() - began
        return batch.cache, pieces

    def _catch_up(self, cache: Cache) -> None:
        """Forward pending tokens but the last, chunk by chunk. Under full attention nothing is final until all is.

        On any other canvas prompts alone are read so: its windows hold whatever else the cache lacks.
        """
        batch, offered = self.batch, self.target.capabilities
        behind = max([len(row.tokens) - n for row, n in zip(batch.rows, cache.lengths, strict=False)], default=0)
        # After most steps the last token alone is pending, and there is nothing to do.
        is_due = (offered.turns_at or behind > 1) and not 1 < behind <= self.tail
        if not is_due or offered.attention in ("full", "any-order"):
            return
        if self._needs.has_forks and not (self._needs.outputs or self._needs.has_prefill_logits or offered.turns_at):
            self._read_once(cache)
        size, held = len(batch.rows), cache.lengths[len(batch.rows) :]
        texts = [row.tokens[:1] if offered.is_canvas and row.usage.num_steps else row.tokens for row in batch.rows]
        texts += [row.tokens[: n + 1] for row, n in zip(batch.waiting, held, strict=True)]
        given, began = (self.target, cache, texts, self.chunk), time.perf_counter()
        needs, prompts = self._needs, batch.all_prompts
        for places, scores in catch_up(
            *given, has_logits=needs.has_prefill_logits, outputs=needs.outputs, prompts=prompts
        ):
            took, empty = {"score": time.perf_counter() - began}, [0] * size
            part = scores.part(range(size), scores.logits.shape[1])
            chunk = Outcome([[] for _ in empty], empty, scores=part, chunk=places[:size], seconds=took)
            batch.state = self.method.observe(chunk, batch.view(self.num_steps, self.last), batch.state)
            began = time.perf_counter()

    def _read_once(self, cache: Cache) -> None:
        """Read what rows of a group have in common once, and let the others go on from it."""
        rows, lead = self.batch.rows, list(range(len(cache.lengths)))
        due = [at for at, row in enumerate(rows) if len(row.tokens) - cache.lengths[at] > 1]
        for group in self.batch.groups if not self.batch.prompts else []:
            first = group[0]
            for at in group:
                is_same = rows[at].tokens == rows[first].tokens and cache.lengths[at] == cache.lengths[first]
                lead[at] = first if is_same and at in due else at
        leads = sorted({lead[at] for at in due})
        if len(leads) < len(due):
            for _ in catch_up(self.target, cache.part(leads), [rows[at].tokens for at in leads], self.chunk):
                pass
            cache.follow(lead)

    def _has_read(self, pieces: list[list[int]], scores: Scores | None) -> None:
        """Show the method what was read of rows in line, and let those begin whose prompts were read to the end."""
        batch, done = self.batch, 0
        assert batch.cache is not None
        ends = batch.cache.lengths[len(batch.rows) :]
        places = [range(end - len(piece), end) for end, piece in zip(ends, pieces, strict=True)]
        for arrived, view in zip(batch.line, batch.views_in_line(self.num_steps, self.last), strict=True):
            index = range(done, done + len(arrived.rows))
            done = index.stop
            if not any(pieces[i] for i in index):
                continue
            part = None if scores is None else scores.part(index, scores.logits.shape[1])
            empty = [0] * len(index)
            chunk = Outcome([[] for _ in empty], empty, scores=part, chunk=[places[i] for i in index])
            arrived.state = self.method.observe(chunk, view, arrived.state)
        self._seat()

    def _seat(self, *, everybody: bool = False) -> None:
        """Let rows in line begin whose prompts are read, in the order of arrival."""
        batch, at = self.batch, len(self.batch.rows)
        assert batch.cache is not None
        count = len(batch.line) if everybody else 0
        for arrived in batch.line[count:]:
            held = batch.cache.lengths[at : at + len(arrived.rows)]
            if any(len(row.tokens) - n > 1 for row, n in zip(arrived.rows, held, strict=True)):
                break
            at += len(arrived.rows)
            count += 1
        batch.seat(count)

    def _fit(self, proposal: Proposal, pending: list[list[int]], cache: Cache) -> Proposal:
        """Cut a proposal to what cache, context and remaining length can take; pad it in batch-invariant mode.

        A canvas is the method's own: it knows what it forwards, and nothing of it can be left out.
        """
        if proposal.is_whole:
            return proposal
        rows = self.batch.rows
        proposal = sound(proposal, rows, self.target.capabilities.vocab_size)
        longest = max([len(tokens) + n for _, tokens, n in zip(rows, pending, cache.lengths, strict=False)])
        slots = cache.capacity - longest
        if len(pending) > len(rows):  # every row stages as many entries as the widest one
            slots = cache.capacity - max(map(len, pending)) - max(cache.lengths)
        limit = min(slots, self.target.capabilities.max_positions - longest)
        if self.target.capabilities.turns_anew:  # what lies behind the turn is for the new reading
            left = [self.target.capabilities.turns_at - len(row.tokens) for row in rows]
            limit = min([limit, *(n for n, phase in zip(left, cache.phases, strict=True) if not phase)])
        if isinstance(cache, PagedCache):
            limit = affordable(cache, [len(tokens) for tokens in pending], proposal.length, limit)
        if proposal.parent is None:
            room = max([row.room for row in rows]) - 1 if proposal.drafts is None else limit
            limit = min(limit, room, self.width or limit)
        return fit(proposal, limit, min(self.width, slots))

    def _count(self, rows: list[Row], before: list[tuple[int, int]], seconds: dict[str, float]) -> None:
        (target_nfe, positions), (draft_nfe, _) = before
        for row in rows:
            row.usage.target_nfe += self.counters["target"].nfe - target_nfe
            row.usage.draft_nfe += self.counters["draft"].nfe - draft_nfe
            row.usage.positions_scored += (self.counters["target"].positions - positions) // len(rows)
        for name, value in seconds.items():
            self.seconds[name] += value


def _with_reads(needs: Needs, models: Mapping[str, Adapter]) -> Needs:
    """Return what a method needs whose models may read the target's hidden states."""
    return replace(needs, outputs=functools.reduce(operator.or_, [one.reads for one in models.values()], needs.outputs))


def _num_shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many tokens two texts have in common at their beginning; quick where they part near the end."""
    low = size = min(len(left), len(right))
    back = 1
    while low and left[:low] != right[:low]:
        low, back = max(0, low - back), 2 * back
    while low < size and left[low] == right[low]:
        low += 1
    return low
