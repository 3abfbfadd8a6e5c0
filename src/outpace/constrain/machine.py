"""From expressions to minimal deterministic automata: over kinds of characters first, then over the bytes of UTF-8.

Positions of characters take the place of states without choice (Glushkov, 1961), so there are no free steps. Sets of
positions would multiply where counted repeats lie within each other: ([a-z]{1,20} ?){1,20}. There a copy of the part
that has all the ways on of another one makes the other superfluous, and it is dropped from the set.
"""

from __future__ import annotations

import bisect
import itertools
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from outpace.constrain.expression import LAST, Chain, Choice, Letters, Node, Repeat, is_nullable, nonempty, size
from outpace.constrain.grammar import Terminal
from outpace.errors import ConfigError

__all__ = ["DEAD", "Budget", "Table", "bits", "byte_table", "is_empty", "merge_equals", "minimal"]

DEAD = 0  # the state that no text leaves

Table = tuple[NDArray[np.int32], NDArray[np.bool_], int]  # the state after each letter, acceptance, the start


@dataclass
class Budget:
    """How much a compilation may do; told on standard error once it takes long.

    Attributes:
        kind: what is compiled, for messages.
        most_states: of any automaton on the way; what decides, and the same on every machine.
        most_cells: states times the nodes of the vocabulary's tree, as the walk of the tokens takes time and memory.
        seconds: a last net.
        clock: seconds since some moment.
    """

    kind: str = "regular expression"
    most_states: int = 20_000
    most_cells: int = 1_500_000_000
    seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic
    states: int = 0
    _began: float = field(init=False)
    _told: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self.clock()
        self._told = self._began

    def hold(self, states: int) -> None:
        """Note how many states an automaton has by now.

        Raises:
            ConfigError: they are too many, or it takes too long.
        """
        self.states = max(self.states, states)
        if states > self.most_states:
            raise self._refusal(f"{self.most_states} states")
        if states % 512 == 0:
            self.tell(f"{states} states")

    def hold_cells(self, cells: int) -> None:
        """Note how many cells the tokens' walk has.

        Raises:
            ConfigError: they are too many.
        """
        if cells > self.most_cells:
            raise self._refusal(f"{self.most_cells} places of states and tokens")

    def tell(self, done: str) -> None:
        """Say on standard error, every few seconds, what has been done.

        Raises:
            ConfigError: it takes too long.
        """
        now = self.clock()
        if now - self._began > self.seconds:
            raise self._refusal(f"{self.seconds:.0f} s")
        if now - self._told > 2.0:
            self._told = now
            print(f"outpace: compiling the {self.kind}: {done} so far", file=sys.stderr)

    def _refusal(self, limit: str) -> ConfigError:
        return ConfigError(
            f"The {self.kind} needs more than {limit} on a canvas.",
            "Lower its counts, name fewer characters ([a-z] rather than \\w), or write with a text model.",
        )


def byte_table(terminal: Terminal, budget: Budget) -> Table:
    """Return the minimal automaton over bytes of a terminal's texts.

    Raises:
        ConfigError: the budget does not suffice.
    """
    # Characters first, bytes last: the sets of positions then know only the few kinds of characters that the terminal
    # tells apart, and UTF-8 is spelled out once, on an automaton that is minimal already.
    atoms = _atoms((*terminal.all_of, *terminal.none_of))
    return _over_bytes(_characters(terminal, atoms, budget), atoms, budget)


def is_empty(terminal: Terminal, budget: Budget) -> bool:
    """Return whether a terminal has no text.

    Raises:
        ConfigError: the budget does not suffice to tell.
    """
    return _characters(terminal, _atoms((*terminal.all_of, *terminal.none_of)), budget)[2] == DEAD


def _characters(terminal: Terminal, atoms: _Atoms, budget: Budget) -> Table:
    """Return the minimal automaton over kinds of characters."""
    tables = [minimal(*_determined(node, atoms, budget)) for node in terminal.all_of]
    tables += [_complement(minimal(*_determined(node, atoms, budget))) for node in terminal.none_of]
    # Minimal after every meeting: a product of all at once would have the product of their sizes on the way.
    whole = tables[0]
    for table in tables[1:]:
        whole = minimal(*_both(whole, table, budget))
    return whole


def _complement(table: Table) -> Table:
    """Return the automaton of all other texts."""
    # The dead state becomes one that accepts and stays, so a new dead state is put before all others.
    leads, accept, start = table
    moved = np.concatenate([np.zeros((1, leads.shape[1]), np.int32), leads + 1])
    return moved.astype(np.int32), np.concatenate([[False], ~accept]), start + 1


@dataclass(frozen=True)
class _Atoms:
    """The kinds of characters that some expressions tell apart.

    Attributes:
        starts: first code points of runs, in order.
        kind: number of the kind of each run.
        of: numbers of the kinds in each set of characters.
    """

    starts: list[int]
    kind: list[int]
    of: dict[Letters, list[int]]

    @property
    def count(self) -> int:
        """Number of kinds."""
        return max(self.kind) + 1


def _atoms(nodes: Sequence[Node]) -> _Atoms:
    # Each set of characters is a bit that flips at the ends of its runs. Between two flips nothing changes, so that a
    # run has one mask, and runs of one mask are one kind.
    sets = list(dict.fromkeys(letters for node in nodes for letters in _letters(node)))
    edges: dict[int, int] = {0: 0}
    for number, letters in enumerate(sets):
        for low, high in letters.ranges:
            edges[low] = edges.get(low, 0) ^ (1 << number)
            edges[high + 1] = edges.get(high + 1, 0) ^ (1 << number)
    starts, inside, kinds, numbers = sorted(edges), 0, list[int](), dict[int, int]()
    for start in starts:
        inside ^= edges[start]
        kinds.append(numbers.setdefault(inside, len(numbers)))
    found = {letters: [kind for member, kind in numbers.items() if member >> n & 1] for n, letters in enumerate(sets)}
    return _Atoms(starts, kinds, found)


def _letters(node: Node) -> Iterator[Letters]:
    if isinstance(node, Letters):
        yield node
    else:
        for part in (node.part,) if isinstance(node, Repeat) else node.parts:
            yield from _letters(part)


class _Positions:
    """The positions of an expression's characters: where a text may begin and end, and what follows what.

    Sets of positions are integers with one bit each. Position 0 stands before the text.
    """

    def __init__(self, node: Node, num_kinds: int, of: dict[Letters, list[int]]) -> None:
        self.follow = [0]
        self.worse = [0]  # positions that add nothing to a set that holds this one
        self.accepting = [0] * num_kinds  # by kind of character, the positions that take it
        self._of = of
        first, self.last = self._lay(node)
        self.follow[0] = first
        self.last |= int(is_nullable(node))
        self.better = sum(1 << position for position, worse in enumerate(self.worse) if worse)

    def _lay(self, node: Node) -> tuple[int, int]:
        """Lay out a part; return its first and its last positions."""
        if isinstance(node, Letters):
            bit = 1 << len(self.follow)  # every mention of a set of characters is a position of its own
            self.follow.append(0)
            self.worse.append(0)
            for kind in self._of[node]:
                self.accepting[kind] |= bit
            return bit, bit
        if isinstance(node, Choice):
            found = [self._lay(part) for part in node.parts]
            return sum(first for first, _ in found), sum(last for _, last in found)
        return self._repeat(node) if isinstance(node, Repeat) else self._chain(node)

    def _chain(self, node: Chain) -> tuple[int, int]:
        first, last, is_begin = 0, 0, True
        for part in node.parts:
            begin, end = self._lay(part)
            # What may stand last so far is followed by what this part may begin with; a part that may be empty lets
            # those before it stay last, and those behind it come first.
            self._link(last, begin)
            first |= begin if is_begin else 0
            is_begin &= is_nullable(part)
            last = end | last if is_nullable(part) else end
        return first, last

    def _repeat(self, node: Repeat) -> tuple[int, int]:
        # Copies are written out, as there is no counting in a finite automaton. None of them may be empty: then the
        # number of copies in use is the number written, and `_rank` can compare them.
        part, least = (nonempty(node.part), 0) if is_nullable(node.part) else (node.part, node.least)
        first, last, before = 0, 0, 0
        bases = []
        for copy in range(1, (node.most or max(least, 1)) + 1):
            bases.append(len(self.follow))
            begin, end = self._lay(part)
            self._link(before, begin)
            first |= begin if copy == 1 else 0
            last |= end if copy >= least else 0
            before = end
        if node.most is None:
            self._link(before, begin)
        self._rank(bases, len(self.follow) - bases[-1], least, node.most is None)
        return first, last

    def _rank(self, bases: list[int], length: int, least: int, is_endless: bool) -> None:
        """Note which copies of a part have all the ways on of others.

        Once enough were written, an earlier copy leaves more to come. Before that, and if there is no end to them, a
        later copy has less to do.
        """
        pairs = list(itertools.pairwise(bases))
        if is_endless:
            ranked = [(after, before) for before, after in pairs]
        else:
            ranked = pairs[max(least, 1) - 1 :][::-1]
        for better, worse in ranked:
            for offset in range(length):
                self.worse[better + offset] |= self.worse[worse + offset] | 1 << (worse + offset)

    def _link(self, before: int, after: int) -> None:
        for position in bits(before):
            self.follow[position] |= after


def _determined(node: Node, atoms: _Atoms, budget: Budget) -> Table:
    """Return the automaton whose states are sets of positions."""
    budget.hold(size(node))
    laid = _Positions(node, atoms.count, atoms.of)

    def leads(positions: int) -> list[int | None]:
        after, found = 0, list[int | None]()
        for position in bits(positions):
            after |= laid.follow[position]
        # Without the last step sets would multiply: a set that holds a position needs none of those worse than it.
        for taken in laid.accepting:
            target = after & taken
            if target:
                for position in bits(target & laid.better):
                    target &= ~laid.worse[position]
            found.append(target or None)
        return found

    return _explored(1, leads, lambda positions: bool(positions & laid.last), budget)


def _both(one: Table, other: Table, budget: Budget) -> Table:
    """Return the automaton of the texts of two."""
    (mine, ends, first), (theirs, stops, begin) = one, other

    def leads(state: tuple[int, int]) -> list[tuple[int, int] | None]:
        pairs = zip(mine[state[0]].tolist(), theirs[state[1]].tolist(), strict=True)
        return [None if DEAD in pair else pair for pair in pairs]

    return _explored((first, begin), leads, lambda state: bool(ends[state[0]] and stops[state[1]]), budget)


_State = TypeVar("_State", bound=Hashable)


def _explored(
    start: _State,
    leads: Callable[[_State], Sequence[_State | None]],
    accepts: Callable[[_State], bool],
    budget: Budget,
) -> Table:
    """Return the automaton of the states that a start leads to, numbered as they are found.

    Args:
        start: its first state.
        leads: tells the state after each letter; None = the dead one.
        accepts: tells whether a text may end in a state.
        budget: asked at each new state.
    """
    numbers: dict[_State | None, int] = {None: DEAD, start: 1}
    waiting, rows = [start], list[list[int]]()
    for state in waiting:
        row = []
        for target in leads(state):
            if target is not None and target not in numbers:
                waiting.append(target)
                numbers[target] = len(waiting)
                budget.hold(len(waiting))
            row.append(numbers[target])
        rows.append(row)
    table = np.asarray([[DEAD] * len(rows[0]), *rows], np.int32)
    return table, np.asarray([False, *map(accepts, waiting)]), 1


def merge_equals(rows: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return a number for each row, the same for equal rows and counted from the first."""
    found: dict[bytes, int] = {}  # much faster than sorting the rows
    return np.asarray([found.setdefault(row.tobytes(), len(found)) for row in np.ascontiguousarray(rows)], np.int64)


def minimal(table: NDArray[np.int32], accept: NDArray[np.bool_], start: int) -> Table:
    """Join states that cannot be told apart (Moore's refinement); those that cannot reach acceptance are dead.

    Args:
        table: [S, letters]; state 0 is dead.
        accept: [S].
        start: a state.
    """
    _, letters = np.unique(table, axis=1, return_index=True)  # letters that do the same everywhere count once
    narrow = table[:, letters]
    shortest, longest = _lengths(narrow, accept)
    labels = merge_equals(np.stack([shortest, longest], axis=1))
    count = int(labels.max()) + 1
    # Split the classes by where each letter leads until none splits; lengths have done most of it already.
    while True:
        labels = merge_equals(np.concatenate([labels[:, None], labels[narrow]], axis=1).astype(np.int32))
        found = int(labels.max()) + 1
        if found == count:
            break
        count = found
    # State 0 comes first, so the dead state's class is number 0.
    _, example = np.unique(labels, return_index=True)
    return labels[table[example]].astype(np.int32), accept[example], int(labels[start])


def _lengths(table: NDArray[np.int32], accept: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the lengths of the shortest and the longest text from each state; the longest is -1 where none is.

    They tell most states of counted repeats apart at once, where refinement needs a round for each length.
    """
    far = len(table) + 1
    shortest = np.where(accept, 0, far).astype(np.int32)
    while True:
        better = np.minimum(shortest, shortest[table].min(axis=1) + 1)
        if (better == shortest).all():
            break
        shortest = better
    is_live = shortest < far
    longest = np.full(len(table), -1, np.int32)
    is_known = ~is_live
    for length in range(len(table)):
        ready = ~is_known & is_known[table].all(axis=1)
        if not ready.any():
            break
        longest[ready] = length if length == 0 else longest[table[ready]].max(axis=1) + 1
        longest[ready] = np.where(accept[ready], np.maximum(longest[ready], 0), longest[ready])
        is_known |= ready
    longest[~is_known] = far
    return shortest, longest


def _over_bytes(machine: Table, atoms: _Atoms, budget: Budget) -> Table:
    """Return a minimal automaton over kinds of characters as one over the bytes of UTF-8; it is minimal again.

    A state within a character is a node of the tree of all characters, met with a state's ways on.
    """
    # Characters of one byte lead straight on. The others go through states of their own: a node of the tree, met with
    # the ways on of a state, is told apart only by where its last byte leads, so equal ones are one state.
    table, accept, start = machine
    width, tree = len(table), _Tree(atoms)
    leads = np.concatenate([table, np.zeros((width, 1), np.int32)], axis=1)  # the last column: no character
    rows = [np.zeros((width, 256), np.int32)]
    rows[0][:, :0x80] = leads[:, tree.single]
    inside: list[NDArray[np.int32]] = []  # by node, [width]: the state within a character
    known: dict[bytes, int] = {}
    for is_last, children in tree.nodes:
        following = leads[:, children] if is_last else np.stack([inside[child] for child in children], axis=1)
        numbers = np.zeros(width, np.int32)
        for state in np.flatnonzero(following.any(axis=1)).tolist():
            key = following[state].tobytes()
            if key not in known:
                known[key] = width + len(known)
                budget.hold(width + len(known))
                rows.append(np.zeros((1, 256), np.int32))
                rows[-1][0, 0x80:0xC0] = following[state]
            numbers[state] = known[key]
        inside.append(numbers)
    # Last, the bytes that begin a character lead from whole characters into the tree.
    for byte, node in tree.leads.items():
        rows[0][:, byte] = inside[node]
    return np.concatenate(rows), np.concatenate([accept, np.zeros(len(known), np.bool_)]), start


class _Tree:
    """All characters by the bytes of UTF-8, down to their kinds; equal parts are one.

    Attributes:
        single: kinds of the characters of one byte.
        nodes: whether a node stands before a last byte, and its 64 children, kinds or earlier nodes.
        leads: the node behind each byte that begins a character of several.
    """

    def __init__(self, atoms: _Atoms) -> None:
        self._atoms = atoms
        self.nodes: list[tuple[bool, tuple[int, ...]]] = []
        self._known: dict[tuple[int, tuple[int, ...]], int] = {}
        self.single = [self._kind(code) for code in range(0x80)]
        self._nowhere = [atoms.count]
        for more in range(2):
            self._nowhere.append(self._node(more, (self._nowhere[-1],) * 64))
        self.leads = {byte: self._build((byte - 0xC0) << 6, 0, 0x80) for byte in range(0xC2, 0xE0)}
        self.leads |= {byte: self._build((byte - 0xE0) << 12, 1, 0x800) for byte in range(0xE0, 0xF0)}
        self.leads |= {byte: self._build((byte - 0xF0) << 18, 2, 0x10000) for byte in range(0xF0, 0xF5)}

    def _kind(self, code: int) -> int:
        return self._atoms.kind[bisect.bisect_right(self._atoms.starts, code) - 1]

    def _build(self, low: int, more: int, least: int) -> int:
        """Return the node of the characters from `low` on, `more` bytes and one before their ends."""
        # Where no run of characters ends within, the whole subtree is one kind, and need not be walked.
        part, at = 64**more, bisect.bisect_right(self._atoms.starts, low)
        is_even = at == len(self._atoms.starts) or self._atoms.starts[at] >= low + 64 * part
        if is_even and low >= least and low + 64 * part <= LAST + 1:
            child = self._build(low, more - 1, least) if more else self._kind(low)
            return self._node(more, (child,) * 64)
        children = []
        for begin in range(low, low + 64 * part, part):
            if begin < least or begin > LAST:  # spelled too long, or beyond the last character
                children.append(self._nowhere[more])
            else:
                children.append(self._build(begin, more - 1, least) if more else self._kind(begin))
        return self._node(more, tuple(children))

    def _node(self, more: int, children: tuple[int, ...]) -> int:
        if (more, children) not in self._known:
            self._known[more, children] = len(self.nodes)
            self.nodes.append((more == 0, children))
        return self._known[more, children]


def bits(places: int) -> Iterator[int]:
    """Yield the numbers of the bits that are set."""
    while places:
        low = places & -places
        yield low.bit_length() - 1
        places ^= low
