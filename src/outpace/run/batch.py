"""The rows of a run and everything that has a row axis: cache, method state, sampler. Rows join and leave here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from outpace.cache import Cache
from outpace.run import state as trees
from outpace.run.row import Row, follow
from outpace.sampling import Sampler, Sampling
from outpace.sampling.samplers import sampler_of
from outpace.types import Outcome, View

__all__ = ["Batch"]


class Batch:
    """Rows side by side.

    Attributes:
        rows: the sequences being written.
        cache: the target's cache, one row each; None while there are no rows.
        state: the method's state, one row each.
        sampler: bound to the rows' keys.
        groups: the rows by group.
        prompts: per row, the soft embeddings of its first positions, or None; empty = no row has any.
        settings: of rows that have none of their own.
        line: rows whose prompts are read beside the others, in the order of arrival, those that came together in one
            batch; they take no part in steps yet. Their entries lie in `cache` behind those of the rows.
    """

    def __init__(self, settings: Sampling) -> None:
        self.settings = settings
        self.rows: list[Row] = []
        self.cache: Cache | None = None
        self.state: Any = None
        self.sampler = Sampler(settings, [])
        self.groups: list[list[int]] = []
        self.prompts: list[Tensor | None] = []
        self.line: list[Batch] = []

    @property
    def waiting(self) -> list[Row]:
        """The rows in line."""
        return [row for arrived in self.line for row in arrived.rows]

    @property
    def all_prompts(self) -> list[Tensor | None]:
        """The soft embeddings of all rows, those in line too; empty = no row has any."""
        parts = (self, *self.line)
        if not self.line or not any(part.prompts for part in parts):
            return self.prompts
        return [prompt for part in parts for prompt in part.prompts or [None] * len(part.rows)]

    def join(self, rows: Sequence[Row], cache: Cache, state: Any, *, in_line: bool = False) -> None:
        """Add rows with their cache and state, at once (with all in line), or behind those in line."""
        self.cache = cache if self.cache is None else Cache.join([self.cache, cache])
        arrived = Batch(self.settings)
        arrived._take(rows, state)
        self.line.append(arrived)
        if not in_line:
            self.seat(len(self.line))

    def seat(self, count: int) -> None:
        """Let the first `count` arrivals take part from now on."""
        for arrived in self.line[:count]:
            self._take(arrived.rows, arrived.state)
        del self.line[:count]

    def _take(self, rows: Sequence[Row], state: Any) -> None:
        self.state = trees.join([self.state, state]) if self.rows else state
        self.rows += rows
        self.sampler = bind(self.settings, self.rows)
        self._gather()

    def leave(self, gone: Sequence[Row]) -> None:
        """Drop rows; the last ones take their places, so that little has to be moved."""
        leaving, first, stay = {id(row) for row in gone}, 0, []
        for batch in (self, *self.line):
            count = len(batch.rows)
            stay += [first + i for i in batch._drop(leaving)]
            first += count
        self.line = [arrived for arrived in self.line if arrived.rows]
        if self.cache is not None and stay:
            if len(stay) < first:
                self.cache.leave(stay)
        else:
            self.cache = None

    def _drop(self, leaving: set[int]) -> list[int]:
        """Drop rows, told by `id`, but for what they hold in the cache; return which ones stay, in their new order."""
        stay = [i for i, row in enumerate(self.rows) if id(row) not in leaving]
        if len(stay) == len(self.rows):
            return stay
        is_gone = [id(row) in leaving for row in self.rows[: len(stay)]]
        movers = iter([i for i in reversed(stay) if i >= len(stay)])
        stay = [next(movers) if gap else i for i, gap in enumerate(is_gone)]
        self.rows = [self.rows[i] for i in stay]
        self.sampler = self.sampler.rows(stay) if stay else Sampler(self.settings, [])
        self._gather()
        # A state may look at the cache's entries, so it goes first.
        self.state = trees.rows(self.state, stay) if stay else None
        return stay

    def fork(self, source: Sequence[int]) -> Cache:
        """Let row i continue row `source[i]`; return the cache in its new order, scratch entries included.

        Raises:
            ConfigError: a row continues one of another group.
        """
        assert self.cache is not None  # a run without rows takes no step
        follow(self.rows, source)
        self.state = trees.rows(self.state, source)
        count = len(self.rows)
        self.cache.follow([*source, *range(count, count + len(self.waiting))])
        self.sampler = bind(self.settings, self.rows)
        return self.cache

    def _gather(self) -> None:
        """Note what is wanted of the rows in every step, and changes with them only."""
        groups: dict[object, list[int]] = {}
        for index, row in enumerate(self.rows):
            groups.setdefault(row if row.group is None else row.group, []).append(index)
        self.groups = [sorted(index, key=lambda at: self.rows[at].place) for index in groups.values()]
        inputs = [row.inputs for row in self.rows]
        self.prompts = inputs if any(one is not None for one in inputs) else []

    def part(self, index: Sequence[int]) -> Batch:
        """Return some rows, in that order, with copies of all that is theirs (a row may repeat)."""
        other = Batch(self.settings)
        other.rows = [replace(self.rows[i], tokens=list(self.rows[i].tokens)) for i in index]
        other.cache = None if self.cache is None else self.cache.rows(index)
        other.state, other.sampler = trees.rows(self.state, index), self.sampler.rows(index)
        other._gather()
        return other

    def view(self, step: int, last: Outcome | None, cache: Cache | None = None) -> View:
        """Return what a method may read now; `cache` holds the entries where the batch has none of its own."""
        held = self.cache if cache is None else cache
        assert held is not None  # a run without rows takes no step
        if self.line:
            held = held.part(range(len(self.rows)))
        texts, prompts = [row.tokens for row in self.rows], [row.num_prompt for row in self.rows]
        room = [row.room for row in self.rows]
        return View(texts, prompts, room, step, held, self.sampler, last, self.groups, ends=partial(_ends, self.rows))

    def views_in_line(self, step: int, last: Outcome | None) -> list[View]:
        """Return what a method may read of each arrival."""
        assert self.cache is not None
        first, views = len(self.rows), []
        for arrived in self.line:
            index = range(first, first + len(arrived.rows))
            views.append(arrived.view(step, last, self.cache.part(index)))
            first = index.stop
        return views


def _ends(rows: Sequence[Row], row: int, tokens: Sequence[int]) -> bool:
    return rows[row].would_end(tokens)


def bind(settings: Sampling, rows: Sequence[Row]) -> Sampler:
    """Return a sampler for these rows, which take on the constraint of their settings: their own, or these."""
    if not rows:
        return Sampler(settings, [])
    each = [settings if row.settings is None else row.settings for row in rows]
    for row, own in zip(rows, each, strict=True):
        row.obey(own.constraint)
        row.has_law = bool(own.laws)
    keys, ends, states = [row.key for row in rows], [row.end_tokens for row in rows], [row.state for row in rows]
    limits = [row.num_prompt + row.max_tokens for row in rows]
    return sampler_of(each, keys, ends, states, [row.source or () for row in rows], limits)
