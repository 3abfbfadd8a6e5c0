"""A grammar as the chart reads it: numbered symbols, their order, and one automaton that holds all terminals."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from outpace.constrain.canvas.automaton import DEAD, Automaton
from outpace.constrain.grammar import Grammar
from outpace.constrain.machine import Budget

__all__ = ["NumberedGrammar", "number_symbols"]


@dataclass(slots=True)
class NumberedGrammar:
    """Symbols are numbers. Each is a terminal, a pair (its first part, then its rest) or a choice of symbols.

    Attributes:
        start: symbol of the whole text.
        automaton: of all terminals side by side.
        entry: state where a terminal begins, by symbol.
        owner: the terminal of each state; -1 for the dead one.
        pairs: first part and rest, by symbol.
        choices: alternatives, by symbol.
        nullable: whether a symbol derives the empty text.
        groups: symbols in an order in which each needs only earlier ones at the same place, or its own group's.
        follow: pairs of terminals that can stand side by side.
    """

    start: int = 0
    automaton: Automaton = field(init=False)
    entry: dict[int, int] = field(default_factory=dict)
    owner: list[int] = field(default_factory=lambda: [-1])
    pairs: dict[int, tuple[int, int]] = field(default_factory=dict)
    choices: dict[int, tuple[int, ...]] = field(default_factory=dict)
    nullable: list[bool] = field(default_factory=list)
    groups: list[tuple[int, ...]] = field(default_factory=list)
    follow: set[tuple[int, int]] = field(default_factory=set)

    @property
    def size(self) -> int:
        """Number of symbols."""
        return len(self.nullable)

    @property
    def is_productive(self) -> bool:
        """Whether some text that is not empty can be derived."""
        table, blank = self.automaton.next, self.nullable
        can = {symbol: int((table[state] != DEAD).any()) for symbol, state in self.entry.items()}

        def meet(first: int, rest: int) -> int:
            return can[first] & (can[rest] | blank[rest]) | can[rest] & blank[first]

        _fixpoint(self, can, meet)
        return bool(can[self.start])

    def begins(self) -> list[list[tuple[int, ...]]]:
        """Return, for each byte, the groups of which a text can begin with it, in order."""
        table = self.automaton.next
        live = {symbol: np.flatnonzero(table[state]).tolist() for symbol, state in self.entry.items()}
        first = self._spread({symbol: _union(1 << byte for byte in own) for symbol, own in live.items()}, is_first=True)
        return [
            [group for group in self.groups if any(first[symbol] >> byte & 1 for symbol in group)]
            for byte in range(256)
        ]

    def _spread(self, own: dict[int, int], is_first: bool) -> dict[int, int]:
        """Return what each symbol can begin (or end) with as bits, from what terminals begin (or end) with."""
        found = dict(own)

        def meet(first: int, rest: int) -> int:
            near, far = (first, rest) if is_first else (rest, first)
            return found[near] | (found[far] if self.nullable[near] else 0)

        _fixpoint(self, found, meet)
        return found


def number_symbols(grammar: Grammar, budget: Budget) -> NumberedGrammar:
    """Number a grammar's symbols; rules that derive nothing, or are never used, do no harm.

    Raises:
        ConfigError: a terminal is too large.
    """
    made, numbers = NumberedGrammar(), dict[str, int]()
    names = [*grammar.terminals, *grammar.rules]
    for name in names:
        numbers[name] = len(numbers)
    counter = len(numbers)
    tails: dict[tuple[str, ...], int] = {}

    def chain(parts: tuple[str, ...]) -> int:
        nonlocal counter
        if len(parts) == 1:
            return numbers[parts[0]]
        if parts not in tails:
            rest = chain(parts[1:])
            tails[parts], counter = counter, counter + 1
            made.pairs[tails[parts]] = (numbers[parts[0]], rest)
        return tails[parts]

    empty = set()
    for name, alternatives in grammar.rules.items():
        made.choices[numbers[name]] = tuple(chain(parts) for parts in alternatives if parts)
        if () in alternatives:
            empty.add(numbers[name])
    made.start = numbers[grammar.start]
    automata = [Automaton.of(grammar.terminals[name], budget) for name in grammar.terminals]
    made.automaton, starts = _side_by_side(automata)
    made.entry = {numbers[name]: state for name, state in zip(grammar.terminals, starts, strict=True)}
    for symbol, automaton in zip(made.entry, automata, strict=True):
        made.owner += [symbol] * (automaton.size - 1)
    _mark_nullable(made, empty, counter)
    made.groups = _groups(made)
    made.follow = _follow(made)
    return made


def _side_by_side(automata: Sequence[Automaton]) -> tuple[Automaton, list[int]]:
    """Return one automaton that holds several, and where each begins."""
    tables, accepts, starts, base = [np.zeros((1, 256), np.int32)], [np.zeros(1, np.bool_)], [], 0
    for automaton in automata:
        live = automaton.next[1:]
        tables.append(np.where(live == DEAD, DEAD, live + base).astype(np.int32))
        accepts.append(automaton.accept[1:])
        starts.append(automaton.start + base if automaton.start != DEAD else DEAD)
        base += automaton.size - 1
    return Automaton(np.concatenate(tables), np.concatenate(accepts), DEAD), starts


def _mark_nullable(made: NumberedGrammar, empty: set[int], size: int) -> None:
    flags = dict.fromkeys(empty, 1)
    flags |= {symbol: int(made.automaton.accept[state]) for symbol, state in made.entry.items()}
    _fixpoint(made, flags, lambda first, rest: flags[first] & flags[rest])
    made.nullable = [bool(flags[symbol]) for symbol in range(size)]


def _follow(made: NumberedGrammar) -> set[tuple[int, int]]:
    own = {symbol: 1 << symbol for symbol in made.entry}
    first, last = made._spread(own, is_first=True), made._spread(own, is_first=False)
    found = set()
    for one, other in made.pairs.values():
        found |= {
            (left, right)
            for left in made.entry
            if last[one] >> left & 1
            for right in made.entry
            if first[other] >> right & 1
        }
    return found


def _groups(made: NumberedGrammar) -> list[tuple[int, ...]]:
    """Return the strongly connected parts of "needs at the same place", each after those that it needs (Tarjan)."""
    needs = {symbol: list(parts) for symbol, parts in made.choices.items()}
    for symbol, (first, rest) in made.pairs.items():
        needs[symbol] = [first, rest] if made.nullable[first] else [first]
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    groups: list[tuple[int, ...]] = []
    for root in range(made.size):
        if root in index:
            continue
        work = [(root, iter(needs.get(root, ())))]
        index[root] = low[root] = len(index)
        stack.append(root)
        while work:
            symbol, parts = work[-1]
            part = next(parts, None)
            if part is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[symbol])
                if low[symbol] == index[symbol]:
                    cut = stack.index(symbol)
                    groups.append(tuple(stack[cut:]))
                    del stack[cut:]
            elif part not in index:
                index[part] = low[part] = len(index)
                stack.append(part)
                work.append((part, iter(needs.get(part, ()))))
            elif part in stack:
                low[symbol] = min(low[symbol], index[part])
    return groups


def _fixpoint(grammar: NumberedGrammar, values: dict[int, int], meet: Callable[[int, int], int]) -> None:
    """Add to the values of pairs, by `meet`, and of choices, the union of their parts', until nothing changes."""
    for symbol in (*grammar.pairs, *grammar.choices):
        values.setdefault(symbol, 0)
    before: dict[int, int] = {}
    while values != before:
        before = dict(values)
        for symbol, parts in grammar.pairs.items():
            values[symbol] |= meet(*parts)
        for symbol, some in grammar.choices.items():
            values[symbol] |= _union(values[part] for part in some)


def _union(values: Iterable[int]) -> int:
    return functools.reduce(operator.or_, values, 0)
