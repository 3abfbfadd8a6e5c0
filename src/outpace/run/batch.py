"""The rows of a run and everything that has a row axis: cache, method state, sampler. Rows join and leave here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from outpace.cache import Cache
from outpace.run import state as trees
from outpace.run.row import Row, follow
from outpace.sampling import Sampler, Sampling
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
    """

    def __init__(self, settings: Sampling) -> None:
        self.rows: list[Row] = []
        self.cache: Cache | None = None
        self.state: Any = None
        self.sampler = Sampler(settings, [])
        self.groups: list[list[int]] = []
        self.prompts: list[Tensor | None] = []

    def join(self, rows: Sequence[Row], cache: Cache, state: Any) -> None:
        """Add rows with their cache and state."""
        self.cache = cache if self.cache is None else Cache.join([self.cache, cache])
        self.state = trees.join([self.state, state]) if self.rows else state
        self.rows += rows
        self.sampler = bind(self.sampler.settings, self.rows)
        self._gather()

    def leave(self, gone: Sequence[Row]) -> None:
        """Drop rows; the last ones take their places, so that little has to be moved."""
        leaving = {id(row) for row in gone}
        stay = [i for i, row in enumerate(self.rows) if id(row) not in leaving]
        if len(stay) == len(self.rows):
            return
        is_gone = [id(row) in leaving for row in self.rows[: len(stay)]]
        movers = iter([i for i in reversed(stay) if i >= len(stay)])
        stay = [next(movers) if gap else i for i, gap in enumerate(is_gone)]
        self.rows = [self.rows[i] for i in stay]
        self.sampler = self.sampler.rows(stay)
        self._gather()
        # A state may look at the cache's entries, so it goes first.
        self.state = trees.rows(self.state, stay) if stay else None
        if self.cache is not None and stay:
            self.cache.leave(stay)
        else:
            self.cache = None

    def fork(self, source: Sequence[int]) -> Cache:
        """Let row i continue row `source[i]`; return the cache in its new order, scratch entries included.

        Raises:
            ConfigError: a row continues one of another group.
        """
        assert self.cache is not None  # a run without rows takes no step
        follow(self.rows, source)
        self.state = trees.rows(self.state, source)
        self.cache.follow(source)
        self.sampler = bind(self.sampler.settings, self.rows)
        return self.cache

    def _gather(self) -> None:
        """Note what is wanted of the rows in every step, and changes with them only."""
        groups: dict[object, list[int]] = {}
        for index, row in enumerate(self.rows):
            groups.setdefault(row if row.group is None else row.group, []).append(index)
        self.groups = list(groups.values())
        inputs = [row.inputs for row in self.rows]
        self.prompts = inputs if any(one is not None for one in inputs) else []

    def part(self, index: Sequence[int]) -> Batch:
        """Return some rows, in that order, with copies of all that is theirs (a row may repeat)."""
        other = Batch(self.sampler.settings)
        other.rows = [replace(self.rows[i], tokens=list(self.rows[i].tokens)) for i in index]
        other.cache = None if self.cache is None else self.cache.rows(index)
        other.state, other.sampler = trees.rows(self.state, index), self.sampler.rows(index)
        other._gather()
        return other

    def view(self, step: int, last: Outcome | None) -> View:
        """Return what a method may read now."""
        assert self.cache is not None  # a run without rows takes no step
        texts, prompts = [row.tokens for row in self.rows], [row.num_prompt for row in self.rows]
        room = [row.room for row in self.rows]
        return View(texts, prompts, room, step, self.cache, self.sampler, last, self.groups)


def bind(settings: Sampling, rows: Sequence[Row]) -> Sampler:
    """Return a sampler for these rows, which share the settings and take on their constraint."""
    for row in rows:
        row.obey(settings.constraint)
    keys, ends, states = [row.key for row in rows], [row.end_tokens for row in rows], [row.state for row in rows]
    limits = [row.num_prompt + row.max_tokens for row in rows]
    return Sampler(settings, keys, ends, states, [row.source or () for row in rows], limits)
