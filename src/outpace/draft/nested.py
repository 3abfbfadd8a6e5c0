"""A run inside a run: a drafting model that is itself decoded by some method, for the rows of the target's run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outpace.cache import Cache
from outpace.run.batch import bind
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.sampling import Sampling
from outpace.types import Context, Outcome, View

__all__ = ["DraftRow", "NestedRun"]


class DraftRow(Row):
    """A row of a nested run: where another would end it waits, until it is synced again."""

    __slots__ = ()

    def push(self, token: int) -> bool:
        """Append one drafted token; return whether the row waits now."""
        if token < 0:  # logits that are no numbers: it drafts no more
            self.max_tokens -= self.room
        elif self.room > 0:
            self.tokens.append(token)
            if token in self.end_tokens:  # none, where it is to go on
                self.max_tokens -= self.room
        return self.room <= 0


class NestedRun:
    """The drafting model's rows, one per row of the target's run, with the cache and state of their method.

    Args:
        run: of the drafting model; its rows are `DraftRow`s.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    @staticmethod
    def begin(context: Context, method: Any, *, memory: Any = None, tail: int = 1, role: str = "draft") -> NestedRun:
        """Return a run of the joining rows.

        Args:
            context: of the target's run.
            method: how the drafting model is decoded.
            memory: what the method's `start` gets as the memory.
            tail: as in `Run`.
            role: of the drafting model.
        """
        run = Run(context.models[role], method, Sampling(), capacity=context.capacity, memory=memory)
        run.counters["target"], run.tail = context.counters["draft"], tail
        sources = context.sources or [[] for _ in context.texts]
        rows = zip(context.texts, context.sampler.keys, sources, strict=True)
        run.join([DraftRow(list(text), len(text), key, 0, source=source) for text, key, source in rows])
        return NestedRun(run)

    @property
    def cache(self) -> Cache:
        """The drafting model's cache."""
        assert self.run.batch.cache is not None  # a nested run has a row for each row of the outer one
        return self.run.batch.cache

    @property
    def state(self) -> Any:
        """The method's state."""
        return self.run.batch.state

    def reach(self, view: View, most: int | Sequence[int]) -> list[int]:
        """Return how many tokens ahead each row may draft; 0 past the drafter's context, whatever its neighbours do."""
        limits = [most] * len(view.texts) if isinstance(most, int) else most
        context = self.run.target.capabilities.max_positions
        rows = zip(limits, view.room, view.lengths, strict=True)
        return [max(0, min(limit, room - 1, context - length)) for limit, room, length in rows]

    def forget(self, outcome: Outcome, view: View) -> None:
        """Do nothing: what was drafted is withdrawn when the next texts come."""

    def write(self, view: View, reach: Sequence[int], *, stops_at_ends: bool = False) -> list[list[int]]:
        """Let the drafting model go on behind the texts, and return what it wrote, `reach` tokens per row.

        The drafts are those that it would write token by token, whatever its method guesses; a row whose logits are no
        numbers writes fewer. A row of reach 0 is left where it is.

        Args:
            view: the target's run.
            reach: tokens per row.
            stops_at_ends: a row writes nothing behind one of its end tokens.
        """
        ends = view.sampler.end_tokens if stops_at_ends else [()] * len(view.texts)
        texts = [
            text if ahead > 0 else text[: max(1, held)]
            for text, ahead, held in zip(view.texts, reach, self.cache.lengths, strict=True)
        ]
        for row, text, prompt, ahead, own in zip(self.run.rows, texts, view.prompts, reach, ends, strict=True):
            row.num_prompt, row.end_tokens = min(prompt, len(text)), own
            row.max_tokens = len(text) - row.num_prompt + ahead
            row.sources.clear()
        self.run.sync(texts, view.sampler)
        while any(row.room > 0 for row in self.run.rows):
            self.run.step()
        return [row.tokens[len(text) :] for row, text in zip(self.run.rows, texts, strict=True)]

    def rows(self, index: Sequence[int]) -> NestedRun:
        """Return a run of some rows, in that order (a row may repeat)."""
        return NestedRun(self.run.part(index))

    def join(self, others: Sequence[NestedRun]) -> NestedRun:
        """Take in the rows of other runs, and return itself."""
        self.run.batch.sampler = bind(self.run.settings, self.run.rows)  # the outer run's serves its own rows alone
        for other in others:
            if other is not self:
                self.run.batch.join(other.run.rows, other.cache, other.state)
        return self
