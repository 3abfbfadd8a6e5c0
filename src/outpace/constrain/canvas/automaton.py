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
_MOST_STATES = 20_000
# The library drops ways on from accepting states (of (ab)* it keeps "ab"). So each text ends with a character that is no
# character (Unicode's last), states accept where it leads to the end, and nothing ever goes on from there.
_END = "\U0010ffff"
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
        """Return the automaton of the texts (in UTF-8, without U+10FFFF) that a regular expression matches in full.

        Args:
            pattern: in the syntax of Rust's regex crate; no lookaround, back references or anchors.
            kind: what to call it in an error.

        Raises:
            ConfigError: outlines-core is missing, or the expression cannot be read or is too large.
        """
        library = _library()
        alphabet = library.Vocabulary(256, {bytes([byte]): [byte] for byte in range(256)})
        try:
            index = library.Index(f"(?:{pattern}){_END}", alphabet)
        except ValueError as error:
            raise ConfigError(
                f"The {kind} {_short(pattern)} cannot be used: {_reason(error)}.",
                "Lookaround, back references and anchors are not known; escape characters that stand for themselves.",
            ) from None
        rows = index.get_transitions()
        first, final = index.get_initial_state(), index.get_final_states()
        names = {name: number for number, name in enumerate(sorted({first, *rows, *final}), start=1)}
        if len(names) > _MOST_STATES:
            raise ConfigError(
                f"The {kind} {_short(pattern)} needs {len(names)} states, more than {_MOST_STATES}.",
                "Make its counted repetitions smaller.",
            )
        table = np.zeros((len(names) + 1, 256), np.int32)
        for name, row in rows.items():
            for byte, after in row.items():
                if byte < 256:  # 256 is the library's own end token
                    table[names[name], byte] = names[after]
        is_final = np.zeros(len(names) + 1, np.bool_)
        is_final[[names[name] for name in final]] = True
        ended = np.arange(len(table))
        for byte in _END.encode():
            ended = table[ended, byte]
        return _minimal(table, is_final[ended], names[first])

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
    """The tokens of a vocabulary that write something, as a trie over their bytes, read once and used for every automaton.

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
            _, inside = np.unique(table, axis=0, return_inverse=True)
            _, kinds = np.unique(kinds * (inside.max() + 1) + inside.reshape(-1), return_inverse=True)
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


def _library() -> Any:
    try:
        import outlines_core
    except ImportError:
        raise ConfigError(
            "Constraints on a canvas need the package outlines-core.", "python -m pip install 'outpace[constraints]'"
        ) from None
    return outlines_core


def _short(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 60 else pattern[:57] + "...")


def _reason(error: Exception) -> str:
    """Return the library's complaint without its preamble."""
    text = " ".join(str(error).split()).removeprefix("Failed to build DFA").strip()
    if "anchored universal start" in text:
        return "it looks beyond the text (^, $ or \\b)"
    return text.rstrip(".") or "it is not a regular expression"
