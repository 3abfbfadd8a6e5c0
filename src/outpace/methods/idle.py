"""Drafters that cost nothing until they are asked: each begins at its first use, for the rows there are then."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from outpace.run import state as trees
from outpace.sampling.samplers import join_samplers
from outpace.types import Context, Outcome, View

if TYPE_CHECKING:
    from outpace.methods.base import Method

__all__ = ["Idle"]


class Idle:
    """Methods beside each other, their states made at first use.

    Where the caller gave a memory, all begin at once, since one that does not fit has to be named before a text begins.

    Args:
        methods: in any order, told apart by name, or by the name that they are given.
        context: of the joining rows.
        at_once: those that begin with the rows: they read what the target tells of the prompt.
    """

    def __init__(
        self,
        methods: Sequence[Method] | Mapping[str, Method],
        context: Context,
        at_once: Collection[str] = (),
    ) -> None:
        named = methods if isinstance(methods, Mapping) else {method.name: method for method in methods}
        self.methods = dict(named)
        self.context = replace(context, cache=None)  # rows that have left must not hold their pages through it
        self.given = [len(text) for text in context.texts]  # what was there when a row joined
        self.states: dict[str, Any] = {}
        self._seen: dict[str, int] = {}
        self._begin(self.methods if context.memory is not None else at_once, context)

    def awake(self, name: str, view: View) -> Any:
        """Return a method's state, begun if need be."""
        if name not in self.states:
            self._begin([name], replace(self.context, sampler=view.sampler, cache=view.cache))
        self._seen[name] = sum(map(len, self.context.texts))
        return self.states[name]

    def observe(self, name: str, outcome: Outcome, view: View) -> None:
        """Show a step to a method."""
        self.states[name] = self.methods[name].observe(outcome, view, self.awake(name, view))

    def lag(self, name: str) -> int:
        """Return how many tokens of all rows a method has not seen."""
        return max(0, sum(map(len, self.context.texts)) - self._seen.get(name, 0))

    def rows(self, index: Sequence[int]) -> Idle:
        """Return the methods for some rows, in that order."""
        context = self.context
        other = Idle((), replace(context, memory=None))
        other.methods, other.given = self.methods, [self.given[i] for i in index]
        texts = [context.texts[i] for i in index]
        sources = [context.sources[i] for i in index] if context.sources else []
        other.context = replace(context, texts=texts, sources=sources, sampler=context.sampler.rows(index))
        other.states = {name: trees.rows(state, index) for name, state in self.states.items()}
        other._seen = {name: min(seen, sum(map(len, texts))) for name, seen in self._seen.items()}
        return other

    def join(self, others: Sequence[Idle]) -> Idle:
        """Return the methods for the rows of all; those that one part has begun, begin in the others."""
        for name in {name for part in others for name in part.states}:
            for part in others:
                if name not in part.states:
                    part._begin([name], part.context)
            self.states[name] = trees.join([part.states[name] for part in others])
        self.given = [given for part in others for given in part.given]
        contexts = [part.context for part in others]
        texts = [text for context in contexts for text in context.texts]
        sources = [source for context in contexts for source in context.sources]
        sampler = join_samplers([context.sampler for context in contexts])
        self.context = replace(self.context, texts=texts, sources=sources, sampler=sampler)
        return self

    def _begin(self, names: Collection[str], context: Context) -> None:
        texts = [text[:given] for text, given in zip(context.texts, self.given, strict=True)]
        for name in names:
            self.states[name] = self.methods[name].start(replace(context, texts=texts))
