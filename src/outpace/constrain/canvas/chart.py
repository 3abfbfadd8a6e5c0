"""Which parts of a canvas each symbol of a grammar can span: the intersection with the canvas's regular language.

The canvas is a chain of points. A decided token is a run of edges, one per byte; a masked place is one edge that
carries any one token that lies within a single terminal, every token of one byte among them. So whatever spans the
chain is a real canvas of real tokens: the test is sound, and a canvas that passes stays completable.

Points are numbered from the right end. What a point's symbols can span depends only on what stands to its right, so
points are kept in a tree that grows to the left, and trying a token at a place computes only what stands left of it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from outpace.constrain.canvas.automaton import DEAD
from outpace.constrain.canvas.numbered import NumberedGrammar
from outpace.constrain.machine import bits

__all__ = ["BARRED", "MASK", "Chart", "ChartPoint"]

MASK = 256
BARRED = 257  # a decided token that is no text; it may only stand behind the end
_MOST_POINTS = 4_000  # kept; each holds a few kilobytes


class ChartPoint:
    """A place between bytes, and what can be spanned from here to points further right.

    Attributes:
        depth: distance from the right end, in edges; the point's own bit in a set of points.
        edge: what leads to the next point on the right: a byte, MASK or BARRED.
        states: for each state of the terminals' automaton, the points at which it can be accepting (with this one).
        spans: for each symbol, the points at which it can end, this one excluded.
        ends: points at or right of this one at which the text may end.
    """

    __slots__ = ("depth", "edge", "ends", "left", "spans", "states")

    def __init__(self, depth: int, edge: int, states: list[int], spans: list[int], ends: int) -> None:
        self.depth, self.edge, self.states, self.spans, self.ends = depth, edge, states, spans, ends
        self.left: dict[int, ChartPoint] = {}


@dataclass(eq=False)
class Chart:
    """Answers about canvases under one grammar.

    Attributes:
        grammar: its symbols, numbered.
        successors: states that one token reaches within a terminal, by state.
        can_end: whether a masked place may become an end token.
    """

    grammar: NumberedGrammar
    successors: Sequence[Sequence[int]]
    can_end: bool

    def __post_init__(self) -> None:
        automaton = self.grammar.automaton
        self._accept = automaton.accept.nonzero()[0].tolist()
        self._after = [column.tolist() for column in automaton.next.T]
        self._begins = [*self.grammar.begins(), self.grammar.groups, []]
        self._num_points = 0
        self._plant()

    def _plant(self) -> None:
        automaton = self.grammar.automaton
        self._root = ChartPoint(0, BARRED, automaton.accept.astype(int).tolist(), [0] * self.grammar.size, 1)
        self._num_points = 1

    def read(self, edges: Sequence[int]) -> list[ChartPoint]:
        """Return the points of a chain of edges, by depth: the right end first."""
        # From the right, along known points as far as they go: canvases that differ at a place share all right of it.
        if self._num_points > _MOST_POINTS:
            self._plant()
        chain = [self._root]
        for edge in reversed(edges):
            here = chain[-1].left.get(edge)
            if here is None:
                here = chain[-1].left[edge] = self._extend(chain, edge)
                self._num_points += 1
            chain.append(here)
        return chain

    def ways(self, chain: Sequence[ChartPoint], stops: int = -1) -> int:
        """Return the points, out of a set, at which a whole text that begins at the left end can end."""
        first = chain[-1]
        own = 1 << first.depth if self.grammar.nullable[self.grammar.start] else 0
        return (first.spans[self.grammar.start] | own) & first.ends & stops

    def steps_at(self, chain: Sequence[ChartPoint], depth: int, stops: int) -> dict[int, list[int]]:
        """Return which states one token leads to at a masked place, in a text that ends at one of `stops`.

        Args:
            chain: from `read`.
            depth: of the point before the place.
            stops: points right of the place, out of `ways`.
        """
        # Spans say what could be; which of them a whole text takes part in is known from the left end only.
        use = _Use(self, chain)
        use.add(len(chain) - 1, self.grammar.start, stops & chain[-1].spans[self.grammar.start])
        for at in range(len(chain) - 1, depth, -1):
            use.advance(at)
        # A token keeps a state if the text can go on behind it to one of the ends that this use asks for.
        after, found = chain[depth - 1].states, {}
        for state, ends in use.states_at(depth).items():
            leads = [target for target in self.successors[state] if after[target] & ends]
            if leads:
                found[state] = leads
        return found

    def _extend(self, chain: Sequence[ChartPoint], edge: int) -> ChartPoint:
        # 1) Terminals: their states carry over the edge, and one that may end ends at this point as well.
        right, own = chain[-1], 1 << len(chain)
        here = ChartPoint(len(chain), edge, self._states(right, edge), [0] * self.grammar.size, right.ends)
        for state in self._accept:
            here.states[state] |= own
        # 2) The text may end here where the place can still become an end token.
        if edge == MASK and self.can_end:
            here.ends |= own
        # 3) Symbols, each group after those that it needs; of a byte only those that can begin with it.
        for group in self._begins[edge]:
            if len(group) == 1 and not self._is_loop[group[0]]:
                self._span(chain, here, group[0])
            else:
                self._settle(chain, here, group)
        return here

    @functools.cached_property
    def rank(self) -> dict[int, int]:
        """Place of each symbol in the grammar's order."""
        return {symbol: place for place, group in enumerate(self.grammar.groups) for symbol in group}

    @functools.cached_property
    def _is_loop(self) -> list[bool]:
        """Whether a symbol needs itself at the same place."""
        grammar = self.grammar
        loops = [False] * grammar.size
        for symbol, parts in grammar.choices.items():
            loops[symbol] = symbol in parts
        return loops

    def _states(self, right: ChartPoint, edge: int) -> list[int]:
        if edge == BARRED:
            return [0] * len(right.states)
        known = right.states
        if edge != MASK:
            return [known[target] for target in self._after[edge]]
        found = []
        for targets in self.successors:
            points = 0
            for target in targets:
                points |= known[target]
            found.append(points)
        return found

    def _span(self, chain: Sequence[ChartPoint], here: ChartPoint, symbol: int) -> None:
        """Set what a symbol spans from what its parts span."""
        grammar, spans = self.grammar, here.spans
        if symbol in grammar.entry:
            spans[symbol] = here.states[grammar.entry[symbol]] & ~(1 << here.depth)
        elif symbol in grammar.pairs:
            first, rest = grammar.pairs[symbol]
            spans[symbol] = self._join(chain, spans[first], rest) | (spans[rest] if grammar.nullable[first] else 0)
        else:
            found = 0
            for part in grammar.choices[symbol]:
                found |= spans[part]
            spans[symbol] = found

    def _join(self, chain: Sequence[ChartPoint], middles: int, rest: int) -> int:
        """Return where `rest` can end if it begins at one of some points."""
        found = middles if self.grammar.nullable[rest] else 0
        while middles:  # `bits`, written out: most of a chart's time is spent here
            low = middles & -middles
            found |= chain[low.bit_length() - 1].spans[rest]
            middles ^= low
        return found

    def _settle(self, chain: Sequence[ChartPoint], here: ChartPoint, group: tuple[int, ...]) -> None:
        """Set what the symbols of a group that need each other span; each middle point is joined once."""
        grammar, spans, done = self.grammar, here.spans, dict.fromkeys(group, 0)
        is_changed = True
        while is_changed:
            is_changed = False
            for symbol in group:
                old = spans[symbol]
                if symbol in grammar.pairs:
                    # Spans only grow, so that a middle point joined before gives nothing new.
                    first, rest = grammar.pairs[symbol]
                    new = self._join(chain, spans[first] & ~done[symbol], rest)
                    done[symbol] = spans[first]
                    spans[symbol] |= new | (spans[rest] if grammar.nullable[first] else 0)
                else:
                    self._span(chain, here, symbol)
                is_changed |= spans[symbol] != old


class _Use:
    """Which spans take part in a whole text, from the left end on; only what is reached is looked at."""

    def __init__(self, chart: Chart, chain: Sequence[ChartPoint]) -> None:
        self._chart, self._chain, self._grammar = chart, chain, chart.grammar
        self._symbols: list[dict[int, int]] = [{} for _ in chain]
        self._states: list[dict[int, int]] = [{} for _ in chain]
        self._waiting: list[dict[int, int]] = [{} for _ in chain]

    def add(self, at: int, symbol: int, ends: int) -> None:
        """A symbol that begins at a point may end at some points."""
        known = self._symbols[at].get(symbol, 0)
        fresh = ends & ~known
        if fresh:
            self._symbols[at][symbol] = known | fresh
            waiting = self._waiting[at]
            waiting[symbol] = waiting.get(symbol, 0) | fresh

    def states_at(self, at: int) -> dict[int, int]:
        """Return the states in which a terminal may be at a point, and the points at which it may end."""
        grammar, waiting, states, rank = self._grammar, self._waiting[at], self._states[at], self._chart.rank
        while waiting:
            symbol = max(waiting, key=rank.__getitem__)  # what others use comes after them
            ends = waiting.pop(symbol)
            if symbol in grammar.entry:
                state = grammar.entry[symbol]
                states[state] = states.get(state, 0) | ends
            elif symbol in grammar.pairs:
                self._open(at, symbol, ends)
            else:
                for part in grammar.choices[symbol]:
                    self.add(at, part, ends & self._chain[at].spans[part])
        return states

    def _open(self, at: int, symbol: int, ends: int) -> None:
        grammar, spans = self._grammar, self._chain[at].spans
        # A middle point counts if the rest reaches a wanted end from it; an empty part leaves all to the other.
        first, rest = grammar.pairs[symbol]
        for middle in bits(spans[first]):
            after = ends & self._chain[middle].spans[rest]
            if after or (grammar.nullable[rest] and ends >> middle & 1):
                self.add(at, first, 1 << middle)
                self.add(middle, rest, after)
        if grammar.nullable[first]:
            self.add(at, rest, ends & spans[rest])

    def advance(self, at: int) -> None:
        """Carry the states of a point over its edge."""
        edge, after, following = self._chain[at].edge, self._chain[at - 1].states, self._states[at - 1]
        states = self.states_at(at)
        if edge == BARRED:
            return
        for state, ends in states.items():
            targets = self._chart.successors[state] if edge == MASK else [self._chart._after[edge][state]]
            for target in targets:
                common = ends & after[target]
                if target != DEAD and common:
                    following[target] = following.get(target, 0) | common
