"""The one decoding loop: propose, score, accept, commit.

A `Run` owns prefill, the cache, end of text, stops, per-row finish, counting, timing and randomness. It knows no
method: what is proposed and what is kept is the method's. Rows join and leave between two steps, at their own pace.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from outpace.cache import Cache
from outpace.errors import ConfigError
from outpace.run.batch import Batch, bind
from outpace.run.commit import append, fit, kept, read_back, record, sound
from outpace.run.layout import lay_out, soften
from outpace.run.prefill import catch_up
from outpace.run.row import Row
from outpace.run.threads import shared
from outpace.sampling import Sampling
from outpace.types import Adapter, Context, Counter, Needs, Outcome, Proposal

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["Run"]


class Run:
    """Rows being written by one method on one target.

    Args:
        target: the model.
        method: what to propose and what to keep (an `outpace.methods.Method`).
        settings: sampling settings of all rows.
        capacity: cache entries per row: the longest text plus the widest window.
        models: other models by role.
        memory: what outlives the run, for methods that keep one.
        record: "log_probs" and "margins" are noted per token when named.
        num_top: how many of the likeliest tokens are noted per token.
        chunk: prompt tokens per prefill forward; borders lie at multiples of it, whatever was drafted before.
        width: every scoring forward has exactly this many window nodes (batch-invariant mode); 0 = as proposed.
        device: where tokens are laid out.
        tokenizers: by role, for methods that work on text.
        watch: called after every step with the rows that took part and its Outcome, reports included (traces); it may
            only read.
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
    ) -> None:
        self.target, self.method, self.settings = target, method, settings
        self.capacity, self.models, self.memory = capacity, dict(models or {}), memory
        self.record, self.chunk, self.width, self.device = tuple(record), chunk, width, torch.device(device)
        self.num_top = num_top
        self.tokenizers, self.watch = dict(tokenizers or {}), watch
        self.counters = {"target": Counter(), "draft": Counter()}
        self.seconds = {"prefill": 0.0, "draft": 0.0, "score": 0.0, "accept": 0.0, "total": 0.0}
        self.num_steps = 0
        self.last: Outcome | None = None
        self.batch = Batch(settings)
        self._needs: Needs = method.needs

    @property
    def rows(self) -> list[Row]:
        """The rows still being written."""
        return self.batch.rows

    def join(self, rows: Sequence[Row]) -> None:
        """Add rows; their prompts are prefilled in the next step.

        Raises:
            ConfigError: a row is empty or does not fit the run's capacity.
        """
        rows = [row for row in rows if row.finish is None]
        if any(not row.tokens for row in rows):
            raise ConfigError("The prompt is empty.", "Give at least one token.")
        if any(row.num_prompt + row.max_tokens > self.capacity for row in rows):
            raise ConfigError("A row does not fit the run's cache.", "Give the run a larger capacity.")
        if not rows:
            return
        # Side by side, every row stages as many entries as the widest one, prefill chunks included.
        slots = self.capacity + (self.chunk if len(rows) + len(self.rows) > 1 else 0)
        cache = self.target.new_cache(len(rows), slots, self.counters["target"])
        if self.width:  # every slot is summed over, from the first step on
            cache.has_fixed_extent = True
            cache.reserve(slots)
        sources = [row.source or [] for row in rows]
        if self.target.capabilities.is_encoder_decoder:
            self.target.encode(sources, cache)
        texts, sampler = [row.tokens for row in rows], bind(self.settings, rows)
        given = (self.models, self.counters, self.memory, cache, self.tokenizers, sources)
        canvases = [row.canvas or [-1] * row.room for row in rows] if self.target.capabilities.is_canvas else []
        context = Context(self.target, texts, slots, sampler, *given, canvases)
        self.batch.join(rows, cache, self.method.start(context))

    def leave(self, gone: Sequence[Row]) -> None:
        """Take rows out between two steps; each keeps its tokens and may join a run again."""
        self.batch.leave(gone)

    def step(self) -> list[tuple[Row, list[int]]]:
        """Advance every row by one step; return what each emitted. Finished rows have left when it returns.

        Raises:
            ConfigError: the run has no rows.
        """
        with shared(self.target.is_invariant):
            return self._step()

    def _step(self) -> list[tuple[Row, list[int]]]:
        began = time.perf_counter()
        before = [(counter.nfe, counter.positions) for counter in self.counters.values()]
        batch, cache = self.batch, self._prefill()
        rows, view = list(batch.rows), batch.view(self.num_steps, self.last)
        # 1 propose, 2 gather pending, 3 lay out and pad
        t0 = time.perf_counter()
        proposal = self.method.propose(view, batch.state)
        pending = [[] if proposal.is_whole else row.tokens[n:] for row, n in zip(rows, cache.lengths, strict=True)]
        proposal = self._fit(proposal, pending, cache)
        t1 = time.perf_counter()
        layout = lay_out(pending, cache.lengths, proposal)
        # 4 score
        given = (layout.tokens, layout.position, layout.visible, cache, layout.ask)
        inputs = soften(self.target, layout, proposal.inputs, batch.prompts, cache.lengths)
        scores = self.target.score(*given, outputs=self._needs.outputs, inputs=inputs)
        t2 = time.perf_counter()
        # 5 accept, and the step's one synchronisation
        decision = self.method.accept(proposal, scores, view, batch.state)
        host = read_back(decision)
        t3 = time.perf_counter()
        # 6 continue other rows, cut token by token
        if host.source is not None:
            cache = self._fork(host.source)
        lengths, starts = host.follow(proposal.length), host.follow(layout.start)
        counts = [append(*one) for one in zip(rows, host.tokens, host.path, host.is_recovered, lengths, strict=True)]
        emitted = [tokens[:count] for tokens, count in zip(host.tokens, counts, strict=True)]
        path = [nodes[:count] for nodes, count in zip(host.path, counts, strict=True)]
        accepted = [sum(n >= 0 for n in nodes) for nodes in path]
        # 7 keep
        if decision.keep is None:
            cache.keep(kept(starts, host.path, counts))
        else:
            cache.retain(decision.keep)
        # 8 observe, emit, count
        seconds = {"draft": t1 - t0, "score": t2 - t1, "accept": t3 - t2}
        self.last = Outcome(emitted, accepted, path, proposal, decision, scores, seconds=seconds)
        record(self.record, self.num_top, rows, self.last, view)
        self._observe(rows, self.last)
        batch.leave([row for row in rows if row.finish is not None])
        self._count(rows, before, {**seconds, "total": time.perf_counter() - began})
        return list(zip(rows, emitted, strict=True))

    def _fork(self, source: list[int]) -> Cache:
        if not self._needs.has_forks:
            raise ConfigError(f"The method {self.method.name!r} forks rows unasked.", "Say so in needs.has_forks.")
        return self.batch.fork(source)

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
        if self.watch is not None:
            self.watch(rows, last)

    def _prefill(self) -> Cache:
        """Forward pending tokens but the last, chunk by chunk. Under full attention nothing is final until all is."""
        batch = self.batch
        if batch.cache is None:
            raise ConfigError("The run has no rows.", "Call join first.")
        began = time.perf_counter()
        lengths, offered = batch.cache.lengths, self.target.capabilities
        # After most steps the last token alone is pending, and there is nothing to do.
        is_due = offered.turns_at or any(len(row.tokens) - n > 1 for row, n in zip(batch.rows, lengths, strict=True))
        if is_due and offered.attention != "full":
            texts, needs = [row.tokens for row in batch.rows], self._needs
            has_logits, prompts = needs.has_prefill_logits, batch.prompts
            t0 = began
            given = (self.target, batch.cache, texts, self.chunk)
            for places, scores in catch_up(*given, has_logits=has_logits, outputs=needs.outputs, prompts=prompts):
                took = {"score": time.perf_counter() - t0}
                chunk = Outcome([[] for _ in texts], [0] * len(texts), scores=scores, chunk=places, seconds=took)
                batch.state = self.method.observe(chunk, batch.view(self.num_steps, self.last), batch.state)
                t0 = time.perf_counter()
        self.seconds["prefill"] += time.perf_counter() - began
        return batch.cache

    def _fit(self, proposal: Proposal, pending: list[list[int]], cache: Cache) -> Proposal:
        """Cut a proposal to what cache, context and remaining length can take; pad it in batch-invariant mode.

        A canvas is the method's own: it knows what it forwards, and nothing of it can be left out.
        """
        if proposal.is_whole:
            return proposal
        proposal = sound(proposal, self.rows, self.target.capabilities.vocab_size)
        longest = max(len(tokens) + length for tokens, length in zip(pending, cache.lengths, strict=True))
        slots = cache.capacity - longest
        limit = min(slots, self.target.capabilities.max_positions - longest)
        if self.target.capabilities.turns_anew:  # what lies behind the turn is for the new reading
            left = [self.target.capabilities.turns_at - len(row.tokens) for row in self.rows]
            limit = min([limit, *(n for n, phase in zip(left, cache.phases, strict=True) if not phase)])
        if proposal.parent is None:
            limit = min(limit, max(row.room for row in self.rows) - 1, self.width or limit)
        return fit(proposal, limit, min(self.width, slots))

    def _count(self, rows: list[Row], before: list[tuple[int, int]], seconds: dict[str, float]) -> None:
        (target_nfe, positions), (draft_nfe, _) = before
        for row in rows:
            row.usage.target_nfe += self.counters["target"].nfe - target_nfe
            row.usage.draft_nfe += self.counters["draft"].nfe - draft_nfe
            row.usage.positions_scored += (self.counters["target"].positions - positions) // len(rows)
        for name, value in seconds.items():
            self.seconds[name] += value
