"""Regular expressions as deterministic automata over bytes, and what whole tokens do to them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outpace.errors import ConfigError

__all__ = ["DEAD", "Automaton", "TokenTable", "Trie"]

DEAD = 0  # the state that no text leaves
_CELLS = 1 << 22  # of trie nodes times states walked at once


@dataclass(frozen=True, eq=False)
class Automaton:
    """A minimal deterministic automaton over bytes; state 0 is dead, and every other one can reach acceptance.

    Attributes:
        next: [S, 256] int32, the state after a byte.
        accept: [S] bool.
        start: where a text begins; 0 if the language is empty.
    """

    next: NDArray[np.int32]
    accept: NDArray[np.bool_]
    start: int

    @classmethod
    def of(cls, pattern: str, kind: str = "regular expression") -> Automaton:
        """Return the automaton of the texts (in UTF-8) that a regular expression matches in full.

        Args:
            pattern: in Python's syntax, without anchors, looking behind, back references and classes by property.
            kind: what to call it in an error.

        Raises:
            ConfigError: interegular is missing, or the expression cannot be read.
        """
        library = _library()
        try:
            machine = library.parse_pattern(pattern).to_fsm()
        except (library.Unsupported, library.InvalidSyntax, ValueError, RecursionError) as error:
            raise ConfigError(
                f"The {kind} {_short(pattern)} cannot be used: {_reason(error)}.",
                "Anchors, looking behind and back references are not known; escape characters that mean themselves.",
            ) from None
        return _over_bytes(machine, library.fsm.anything_else)

    @classmethod
    def made(cls, table: NDArray[np.int32], accept: NDArray[np.bool_], start: int) -> Automaton:
        """Return the minimal automaton of a deterministic one, [S, 256]; its state 0 must be dead."""
        return _minimal(table, accept, start)

    @property
    def size(self) -> int:
        """S, with the dead state."""
        return len(self.next)

    def after(self, state: int, text: bytes) -> int:
        """Return the state after some bytes."""
        for byte in text:
            state = int(self.next[state, byte])
        return state


class Trie:
    """The tokens of a vocabulary that write something, as a trie over their bytes.

    Args:
        spelled: the bytes of each id; empty where an id writes nothing.
        barred: ids that are no text (special tokens).
    """

    def __init__(self, spelled: Sequence[bytes], barred: Collection[int]) -> None:
        nodes: dict[bytes, int] = {b"": 0}
        parents, letters, depths, leaf = [0], [0], [0], np.full(len(spelled), -1, np.int64)
        for token, text in enumerate(spelled):
            if not text or token in barred:
                continue
            for end in range(1, len(text) + 1):
                if text[:end] not in nodes:
                    nodes[text[:end]] = len(parents)
                    parents.append(nodes[text[: end - 1]])
                    letters.append(text[end - 1])
                    depths.append(end)
            leaf[token] = nodes[text]
        self.spelled = [b"" if token in barred else text for token, text in enumerate(spelled)]
        self.vocab_size = len(spelled)
        self._leaf, self._num_nodes = leaf, len(parents)
        by_depth = np.argsort(depths, kind="stable")
        edges = np.flatnonzero(np.diff(np.asarray(depths)[by_depth])) + 1
        up, letter = np.asarray(parents), np.asarray(letters)
        self._levels = [(level, up[level], letter[level]) for level in np.split(by_depth, edges)[1:]]

    def walk(self, automaton: Automaton) -> TokenTable:
        """Return where each token leads from each state."""
        steps = np.ascontiguousarray(automaton.next.T)
        block = max(1, _CELLS // self._num_nodes)
        kinds = np.zeros(self.vocab_size, np.int64)
        for first in range(0, automaton.size, block):
            table = self._block(steps, np.arange(first, min(first + block, automaton.size), dtype=np.int32))
            found: dict[bytes, int] = {}  # much faster than sorting the rows
            inside = np.asarray([found.setdefault(row.tobytes(), len(found)) for row in table])
            _, kinds = np.unique(kinds * len(found) + inside, return_inverse=True)
        _, example = np.unique(kinds, return_index=True)
        table = np.empty((automaton.size, len(example)), np.int32)
        for first in range(0, automaton.size, block):
            states = np.arange(first, min(first + block, automaton.size), dtype=np.int32)
            table[states] = self._block(steps, states)[example].T
        return TokenTable(table, kinds)

    def _block(self, steps: NDArray[np.int32], states: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the state after each token from some states, [V, states]."""
        at = np.zeros((self._num_nodes + 1, len(states)), np.int32)  # the last row, dead, is where barred tokens lead
        at[0] = states
        for level, parents, letters in self._levels:
            at[level] = steps[letters[:, None], at[parents]]
        return at[self._leaf]


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Where whole tokens lead; tokens that do the same from every state form one class.

    Attributes:
        next: [S, C] int32, the state after a token of a class.
        kind: [V] int64, the class of each token.
    """

    next: NDArray[np.int32]
    kind: NDArray[np.int64]

    def successors(self) -> list[list[int]]:
        """Return, for each state, the live states that one token can reach."""
        return [np.unique(row[row != DEAD]).tolist() for row in self.next]


def _minimal(table: NDArray[np.int32], accept: NDArray[np.bool_], start: int) -> Automaton:
    """Join states that cannot be told apart (Moore's refinement); those that cannot reach acceptance are dead."""
    _, letters = np.unique(table, axis=1, return_index=True)  # bytes that do the same everywhere count once
    narrow, labels = table[:, letters], accept.astype(np.int64)
    count = len(np.unique(labels))
    while True:
        seen = np.concatenate([labels[:, None], labels[narrow]], axis=1)
        _, labels = np.unique(seen, axis=0, return_inverse=True)
        labels = labels.reshape(-1)
        found = int(labels.max()) + 1
        if found == count:
            break
        count = found
    # The dead state's class becomes number 0: nothing that is not in it has the empty language.
    order = np.concatenate([[labels[DEAD]], np.setdiff1d(np.arange(count), labels[DEAD])])
    number = np.empty(count, np.int64)
    number[order] = np.arange(count)
    _, example = np.unique(labels, return_index=True)
    rows = number[labels[table[example]]].astype(np.int32)[order]
    return Automaton(rows, accept[example][order], int(number[labels[start]]))


def _over_bytes(machine: Any, others: Any) -> Automaton:
    """Return an automaton over characters as one over the bytes of UTF-8.

    Args:
        machine: the library's; a state's map leads from classes of characters to states, and may leave some out.
        others: stands for all characters that the machine does not name.
    """
    named = {letter: kind for letter, kind in machine.alphabet.items() if letter is not others}
    other = machine.alphabet[others]
    number = {state: index for index, state in enumerate(machine.states, start=1)}
    table = np.zeros((len(number) + 1, 256), np.int32)
    rows = [table]
    inner: dict[tuple[Any, ...], int] = {}  # states within a character: what may follow, and where it leads

    def within(low: int, high: int, more: int, target: int, exceptions: tuple[tuple[bytes, int], ...]) -> int:
        """Return the state before a continuation byte in a range and `more` of any; some spellings lead elsewhere."""
        key = (low, high, more, target, exceptions)
        if key in inner:
            return inner[key]
        inner[key] = index = len(number) + 1 + len(inner)
        row = np.zeros((1, 256), np.int32)
        rows.append(row)
        for byte in range(low, high + 1):
            rest = tuple((text[1:], goal) for text, goal in exceptions if text[0] == byte)
            if not more:
                row[0, byte] = rest[0][1] if rest else target
            elif target or rest:
                row[0, byte] = within(0x80, 0xBF, more - 1, target, rest)
        return index

    for state, index in number.items():
        leads = {kind: number[after] for kind, after in machine.map.get(state, {}).items()}
        target = leads.get(other, DEAD)
        table[index, :0x80] = target
        spelled = [(letter.encode(), leads.get(kind, DEAD)) for letter, kind in named.items() if _is_whole(letter)]
        for text, goal in spelled:
            if len(text) == 1:
                table[index, text[0]] = goal
        for first, (low, high, more) in _LEADS.items():
            rest = tuple((text[1:], goal) for text, goal in spelled if text[0] == first and len(text) > 1)
            if target or any(goal for _, goal in rest):
                table[index, first] = within(low, high, more, target, rest)
    whole = np.concatenate(rows)
    accept = np.zeros(len(whole), np.bool_)
    accept[[number[state] for state in machine.finals]] = True
    return _minimal(whole, accept, number[machine.initial])


def _is_whole(letter: str) -> bool:
    """Return whether a letter can be written: half of a surrogate pair cannot."""
    return not 0xD800 <= ord(letter) <= 0xDFFF


# The bytes that begin a character of several: range of the next byte, and how many more follow (Unicode, table 3-7).
_LEADS = {
    **dict.fromkeys(range(0xC2, 0xE0), (0x80, 0xBF, 0)),
    0xE0: (0xA0, 0xBF, 1),
    **dict.fromkeys(range(0xE1, 0xF0), (0x80, 0xBF, 1)),
    0xED: (0x80, 0x9F, 1),
    0xF0: (0x90, 0xBF, 2),
    **dict.fromkeys(range(0xF1, 0xF4), (0x80, 0xBF, 2)),
    0xF4: (0x80, 0x8F, 2),
}


def _library() -> Any:
    try:
        import interegular
    except ImportError:
        raise ConfigError(
            "Constraints on a canvas need the package interegular.", "python -m pip install 'outpace[constraints]'"
        ) from None
    return interegular


def _short(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else pattern[:57] + "...")


def _reason(error: Exception) -> str:
    """Return the library's complaint on one line."""
    text = " ".join(str(error).split()).strip("'.")
    if text in ("^", "$"):
        return "the whole text is matched, so it has no anchors"
    return text or "it is not a regular expression"
