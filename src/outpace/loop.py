"""The one decoding loop: propose, score, accept, commit.

A `Run` owns prefill, the cache, end of text, stops, per-row finish, counting, timing and randomness. It knows no method:
what is proposed and what is kept is the method's. Rows join and leave between two steps, each at its own pace.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from outpace import state as trees
from outpace.cache import Cache
from outpace.errors import ConfigError
from outpace.layout import Layout, lay_out
from outpace.prefill import catch_up
from outpace.row import Row
from outpace.sampling import Sampler, Sampling
from outpace.types import (
    Adapter,
    Context,
    Counter,
    Decision,
    EncoderAdapter,
    FinishReason,
    Outcome,
    Proposal,
    Scores,
    View,
)

__all__ = ["Run"]


class Run:
    """Rows being written by one method on one target.

    Args:
        target: the model.
        method: what to propose and what to keep.
        settings: sampling settings of all rows.
        capacity: cache entries per row: the longest text plus the widest window.
        models: other models by role.
        memory: what outlives the run, for methods that keep one.
        record: "log_probs" and "margins" are recorded per token when named.
        chunk: prompt tokens per prefill forward; borders lie at multiples of it, whatever was drafted before.
        width: pad every scoring forward to this many window nodes (batch-invariant mode); 0 = no padding.
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
        chunk: int = 256,
        width: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.target, self.method, self.settings = target, method, settings
        self.capacity, self.models, self.memory = capacity, dict(models or {}), memory
        self.record, self.chunk, self.width, self.device = tuple(record), chunk, width, torch.device(device)
        self.rows: list[Row] = []
        self.counters = {"target": Counter(), "draft": Counter()}
        self.seconds = {"prefill": 0.0, "draft": 0.0, "score": 0.0, "accept": 0.0, "total": 0.0}
        self.num_steps = 0
        self.last: Outcome | None = None
        self._is_full = target.capabilities.attention == "full"
        self._cache: Cache | None = None
        self._state: Any = None
        self._sampler = Sampler(settings, [])

    def join(self, rows: Sequence[Row]) -> None:
        """Add rows; their prompts are prefilled in the next step.

        Raises:
            ConfigError: a row does not fit the run's capacity.
        """
        rows = [row for row in rows if row.finish is None]
        if not rows:
            return
        for row in rows:
            if not row.tokens:
                raise ConfigError("The prompt is empty.", "Give at least one token.")
            if row.num_prompt + row.max_tokens > self.capacity:
                raise ConfigError("A row does not fit the run's cache.", "Give the run a larger capacity.")
        cache = self.target.new_cache(len(rows), self.capacity, self.counters["target"])
        if self.target.capabilities.is_encoder_decoder:
            cast("EncoderAdapter", self.target).encode([row.source or [] for row in rows], cache)
        sampler = Sampler(self.settings, [row.key for row in rows], rows[0].end_tokens)
        texts = [row.tokens for row in rows]
        context = Context(
            self.target, texts, self.capacity, sampler, self.models, self.counters, self.memory, cache
        )
        state = self.method.start(context)
        self._cache = cache if self._cache is None or not self.rows else Cache.join([self._cache, cache])
        self._state = state if not self.rows else trees.join([self._state, state])
        self.rows += rows
        self._sampler = Sampler(self.settings, [row.key for row in self.rows], rows[0].end_tokens)

    def leave(self, gone: Sequence[Row]) -> None:
        """Take rows out between two steps; each keeps its tokens and may join a run again."""
        stay = [i for i, row in enumerate(self.rows) if not any(row is other for other in gone)]
        if len(stay) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in stay]
        if self.rows:
            assert self._cache is not None
            self._cache, self._state = self._cache.rows(stay), trees.rows(self._state, stay)
        else:
            self._cache, self._state = None, None
        self._sampler = self._sampler.rows(stay)

    def step(self) -> list[tuple[Row, list[int]]]:
        """Advance every row by one step; return what each emitted. Finished rows have left when it returns."""
        began = time.perf_counter()
        before = [(counter.nfe, counter.positions) for counter in self.counters.values()]
        cache = self._prefill()
        rows = list(self.rows)
        view = self._view()
        # 1 gather pending, 2 propose, 3 lay out and pad
        pending = [row.tokens[length:] for row, length in zip(rows, cache.lengths, strict=True)]
        t0 = time.perf_counter()
        proposal = self._fit(self.method.propose(view, self._state), pending, cache)
        t1 = time.perf_counter()
        layout = lay_out(pending, cache.lengths, proposal, self._is_full)
        # 4 score
        scores = self.target.score(layout.tokens, layout.position, layout.visible, cache, layout.ask)
        t2 = time.perf_counter()
        # 5 accept, and the step's one synchronisation
        decision = self.method.accept(proposal, scores, view, self._state)
        host = _read_back(decision)
        t3 = time.perf_counter()
        # 6 cut token by token, 7 keep and append
        emitted, accepted = [], []
        for index, row in enumerate(rows):
            tokens, path = host.tokens[index], host.path[index]
            count = self._append(row, tokens, path, host.is_recovered[index], proposal.length[index])
            emitted.append(tokens[:count])
            accepted.append(sum(node >= 0 for node in path[:count]))
            if host.done[index] and row.finish is None:
                row.finish = FinishReason.EOS
            row.usage.num_accepted += accepted[-1]
            row.usage.num_proposed += proposal.length[index]
        self._record(rows, emitted, host.path, scores, view)
        cache.keep(self._kept(rows, layout, host, emitted, decision))
        # 8 observe, emit, count
        seconds = {"draft": t1 - t0, "score": t2 - t1, "accept": t3 - t2}
        self.last = Outcome(emitted, accepted, proposal, decision, scores, seconds)
        self._state = self.method.observe(self.last, self._view(), self._state)
        self.num_steps += 1
        self._count(rows, before, seconds, began)
        self.leave([row for row in rows if row.finish is not None])
        return list(zip(rows, emitted, strict=True))

    def _view(self) -> View:
        assert self._cache is not None
        texts, prompts = [row.tokens for row in self.rows], [row.num_prompt for row in self.rows]
        room = [row.room for row in self.rows]
        return View(texts, prompts, room, self.num_steps, self._cache, self._sampler, self.last)

    def _prefill(self) -> Cache:
        """Forward pending tokens but the last, chunk by chunk, without logits. Under full attention nothing keeps."""
        cache = self._cache
        if cache is None:
            raise ConfigError("The run has no rows.", "Call join first.")
        began = time.perf_counter()
        if not self._is_full:
            for _ in catch_up(self.target, cache, [row.tokens for row in self.rows], self.chunk):
                chunk = Outcome([[] for _ in self.rows], [0] * len(self.rows))
                self._state = self.method.observe(chunk, self._view(), self._state)
        self.seconds["prefill"] += time.perf_counter() - began
        return cache

    def _fit(self, proposal: Proposal, pending: list[list[int]], cache: Cache) -> Proposal:
        """Drop nodes that no cache slot, position or remaining length could take; pad in batch-invariant mode."""
        longest = max(len(tokens) + length for tokens, length in zip(pending, cache.lengths, strict=True))
        limit = min(cache.capacity, self.target.capabilities.max_positions) - longest
        if proposal.parent is None and not self._is_full:
            limit = min(limit, max(row.room for row in self.rows) - 1)
        if self.width:
            limit = min(limit, self.width)
        width = max(0, min(proposal.tokens.shape[1], limit))
        if width < proposal.tokens.shape[1]:
            proposal = _narrow(proposal, width)
        extra = min(self.width, cache.capacity - longest) - width
        if extra > 0 and proposal.parent is None and not self._is_full:
            proposal.tokens = torch.nn.functional.pad(proposal.tokens, (0, extra))
        return proposal

    def _append(self, row: Row, tokens: list[int], path: list[int], is_recovered: bool, num_proposed: int) -> int:
        """Write tokens until the row ends; return how many were written."""
        for index, token in enumerate(tokens):
            is_end = row.push(token)
            if token < 0:
                return index
            plain = "recovered" if is_recovered else "bonus" if num_proposed else "plain"
            row.sources.append("draft" if path[index] >= 0 else plain)
            if is_end:
                row.stopped_inside = index + 1 < len(tokens)
                return index + 1
        return len(tokens)

    def _kept(
        self, rows: list[Row], layout: Layout, host: _Host, emitted: list[list[int]], decision: Decision
    ) -> list[list[int]]:
        """Return per row the staged entries that stay: pending ones, then accepted nodes along the path."""
        keep = decision.keep if decision.keep is not None else not self._is_full
        if not keep:
            return [[] for _ in rows]
        kept = []
        for index, start in enumerate(layout.start):
            nodes = [node for node in host.path[index][: len(emitted[index])] if node >= 0]
            # The last final token always stays pending, so that the next forward has a root.
            most = start + len(emitted[index]) - 1
            kept.append([*range(start), *(start + node for node in nodes)][:most])
        return kept

    def _record(
        self, rows: list[Row], emitted: list[list[int]], path: list[list[int]], scores: Scores, view: View
    ) -> None:
        """Note log-probabilities and margins of what was just emitted, when asked."""
        if not self.record:
            return
        for index, (row, tokens) in enumerate(zip(rows, emitted, strict=True)):
            nodes = path[index]
            # Causal: the logits before a token; full attention: the logits at it.
            asked = [n + 1 for n in nodes] if self._is_full else [0, *(n + 1 for n in nodes)]
            first = len(row.tokens) - len(tokens)
            for offset, token in enumerate(tokens):
                logits = scores.logits[index, asked[offset]]
                if "log_probs" in self.record:
                    row.log_probs.append(float(logits.double().log_softmax(-1)[token]))
                if "margins" in self.record:
                    text = [row.tokens[: first + offset]]
                    history = view.sampler.history(text, [row.num_prompt], logits.shape[-1])
                    processed = view.sampler.process(logits.unsqueeze(0), history)[0]
                    row.margins.append(view.sampler.margin(processed, first + offset, index))

    def _count(
        self, rows: list[Row], before: list[tuple[int, int]], seconds: dict[str, float], began: float
    ) -> None:
        (target_nfe, positions), (draft_nfe, _) = before
        for row in rows:
            row.usage.num_prompt, row.usage.num_emitted = row.num_prompt, len(row.tokens) - row.num_prompt
            row.usage.num_recovered, row.usage.num_bonus = row.sources.count("recovered"), row.sources.count("bonus")
            row.usage.num_steps += 1
            row.usage.target_nfe += self.counters["target"].nfe - target_nfe
            row.usage.draft_nfe += self.counters["draft"].nfe - draft_nfe
            row.usage.positions_scored += (self.counters["target"].positions - positions) // len(rows)
        for name, value in seconds.items():
            self.seconds[name] += value
        self.seconds["total"] += time.perf_counter() - began


class _Host:
    """A Decision as Python lists."""

    __slots__ = ("done", "is_recovered", "path", "tokens")

    def __init__(
        self, tokens: list[list[int]], path: list[list[int]], done: list[bool], is_recovered: list[bool]
    ) -> None:
        self.tokens, self.path, self.done, self.is_recovered = tokens, path, done, is_recovered


def _read_back(decision: Decision) -> _Host:
    """Bring a Decision to the host in one transfer."""
    tokens, num = decision.tokens, decision.num
    size = tokens.shape[1]
    flags = [torch.zeros_like(num) if flag is None else flag.to(num.dtype) for flag in (decision.done, decision.is_recovered)]
    parts = [num.unsqueeze(1), *(flag.unsqueeze(1) for flag in flags), tokens]
    if decision.path is not None:
        parts.append(decision.path)
    table = torch.cat(parts, 1).tolist()
    written = [row[3 : 3 + row[0]] for row in table]
    if decision.path is None:
        path = [[*range(row[0] - 1), -1] if row[0] else [] for row in table]
    else:
        path = [row[3 + size : 3 + size + row[0]] for row in table]
    return _Host(written, path, [bool(row[1]) for row in table], [bool(row[2]) for row in table])


def _narrow(proposal: Proposal, width: int) -> Proposal:
    """Keep the first `width` nodes; parents precede children, so what stays is a tree."""
    def cut(value: Any) -> Any:
        return None if value is None else value[:, :width]

    return replace(
        proposal,
        tokens=proposal.tokens[:, :width],
        length=[min(n, width) for n in proposal.length],
        parent=cut(proposal.parent),
        position=cut(proposal.position),
        visible=None if proposal.visible is None else proposal.visible[:, :width, :width],
        law=None if proposal.law is None else replace(proposal.law, probs=proposal.law.probs[:, :width]),
    )
