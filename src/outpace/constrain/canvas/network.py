"""Grammars that are regular on their face, as one automaton."""

from __future__ import annotations

import functools
import operator

import numpy as np
from numpy.typing import NDArray

from outpace.constrain.canvas.automaton import DEAD, Automaton
from outpace.constrain.grammar import Grammar
from outpace.constrain.machine import Budget, set_bits

__all__ = ["as_automaton"]

_MOST_STATES = 4_000  # of either kind; a larger grammar is left to the chart


def as_automaton(grammar: Grammar, budget: Budget) -> Automaton | None:
    """Return the automaton of a grammar whose rules recurse at one end only, or None if there are others, or too many.

    Raises:
        ConfigError: a terminal is too large.
    """
    name = grammar.start
    while len(some := grammar.rules.get(name, ())) == 1 and len(some[0]) == 1:
        name = some[0][0]
    if name in grammar.terminals:
        return Automaton.of(grammar.terminals[name], budget)
    network = _Network(grammar, budget)
    first, last = network.point(), network.point()
    if not network.build(grammar.start, first, last, ()):
        return None
    return network.determined(first, last)


class _Network:
    """An automaton with free steps, put together from copies of the terminals' automata."""

    def __init__(self, grammar: Grammar, budget: Budget) -> None:
        self._grammar, self._budget = grammar, budget
        self._terminals: dict[str, Automaton] = {}
        self._free: list[set[int]] = []
        self._copies: list[tuple[int, Automaton]] = []

    def point(self) -> int:
        """Return a new state."""
        self._free.append(set())
        return len(self._free) - 1

    def build(self, name: str, first: int, last: int, above: tuple[str, ...]) -> bool:
        """Lay a symbol between two states; return False if it recurses in its middle, or grows too large."""
        if name in above or len(self._free) > _MOST_STATES:
            return False
        if name in self._grammar.terminals:
            self._copy(name, first, last)
            return True
        alternatives = [parts for parts in self._grammar.rules[name] if parts != (name,)]
        above = (*above, name)
        is_left = any(len(parts) > 1 and parts[0] == name for parts in alternatives)
        is_right = not is_left and any(len(parts) > 1 and parts[-1] == name for parts in alternatives)
        # What recurs runs in a circle at one point: before the rest for a rule that recurses on its right.
        turn = self.point() if is_left or is_right else -1
        begin, end = (turn if is_right else first), (turn if is_left else last)
        if is_right:
            self._free[first].add(turn)
        if is_left:
            self._free[turn].add(last)
        for parts in alternatives:
            if is_left and parts[:1] == (name,):
                is_built = self._chain(parts[1:], turn, turn, above)
            elif is_right and parts[-1:] == (name,):
                is_built = self._chain(parts[:-1], turn, turn, above)
            else:
                is_built = self._chain(parts, begin, end, above)
            if not is_built:
                return False
        return True

    def _chain(self, parts: tuple[str, ...], first: int, last: int, above: tuple[str, ...]) -> bool:
        if not parts:
            self._free[first].add(last)
        for place, part in enumerate(parts):
            after = last if place == len(parts) - 1 else self.point()
            if not self.build(part, first, after, above):
                return False
            first = after
        return True

    def _copy(self, name: str, first: int, last: int) -> None:
        if name not in self._terminals:
            self._terminals[name] = Automaton.of(self._grammar.terminals[name], self._budget)
        automaton, base = self._terminals[name], len(self._free)
        self._free += [{last} if accepts else set() for accepts in automaton.accept.tolist()]
        self._free[first].add(base + automaton.start)
        self._copies.append((base, automaton))

    def determined(self, first: int, last: int) -> Automaton | None:
        """Return the same language without free steps or choices (sets of states), or None if it is too large."""
        closures = [self._closure(state) for state in range(len(self._free))]
        letters, kind, leads = self._letters(closures)
        sets, rows = {0: DEAD, closures[first]: 1}, [[DEAD] * letters]
        waiting = [closures[first]]
        for states in waiting:
            members = [leads[state] for state in set_bits(states) if state in leads]
            found = [functools.reduce(operator.or_, column) for column in zip(*members, strict=True)] or [0] * letters
            for after in dict.fromkeys(found):
                if after not in sets:
                    sets[after] = len(sets)
                    waiting.append(after)
            rows.append([sets[after] for after in found])
            if len(sets) > _MOST_STATES:
                return None
            self._budget.tell(f"{len(sets)} states")
        table = np.asarray(rows, np.int32)[:, kind]
        accept = np.asarray([bool(states >> last & 1) for states in sets])
        return Automaton.made(table, accept, 1)

    def _closure(self, state: int) -> int:
        found, waiting = 1 << state, [state]
        while waiting:
            for target in self._free[waiting.pop()]:
                if not found >> target & 1:
                    found |= 1 << target
                    waiting.append(target)
        return found

    def _letters(self, closures: list[int]) -> tuple[int, NDArray[np.int64], dict[int, list[int]]]:
        """Return the number of kinds of bytes, the kind of each, and for each state the closure after each kind."""
        tables = [automaton.next for automaton in self._terminals.values()]
        _, example, kind = np.unique(np.concatenate(tables), axis=1, return_index=True, return_inverse=True)
        leads = {
            base + state: [closures[base + target] if target != DEAD else 0 for target in row]
            for base, automaton in self._copies
            for state, row in enumerate(automaton.next[:, example].tolist())
            if state != DEAD
        }
        return len(example), kind.reshape(-1), leads
