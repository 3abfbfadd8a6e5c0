"""Regular expressions as deterministic automata over bytes, and what whole tokens do to them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpace.constrain.grammar import Terminal
from outpace.constrain.machine import DEAD, Budget, byte_table, merge_equals, minimal

__all__ = ["DEAD", "Automaton", "TokenTable", "Trie"]

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
    def of(cls, terminal: Terminal, budget: Budget | None = None) -> Automaton:
        """Return the automaton of a terminal's texts, in UTF-8.

        Raises:
            ConfigError: it has more states than the budget allows.
        """
        return cls(*byte_table(terminal, budget or Budget()))

    @classmethod
    def made(cls, table: NDArray[np.int32], accept: NDArray[np.bool_], start: int) -> Automaton:
        """Return the minimal automaton of a deterministic one, [S, 256]; its state 0 must be dead."""
        return cls(*minimal(table, accept, start))

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

    def walk(self, automaton: Automaton, budget: Budget) -> TokenTable:
        """Return where each token leads from each state.

        Raises:
            ConfigError: the budget does not suffice.
        """
        budget.hold_cells(automaton.size * self._num_nodes)
        steps = np.ascontiguousarray(automaton.next.T)
        block = max(1, _CELLS // self._num_nodes)
        kinds = np.zeros(self.vocab_size, np.int64)
        for first in range(0, automaton.size, block):
            budget.tell(f"tokens from {first} of {automaton.size} states")
            table = self._block(steps, np.arange(first, min(first + block, automaton.size), dtype=np.int32))
            inside = merge_equals(table)
            _, kinds = np.unique(kinds * (int(inside.max()) + 1) + inside, return_inverse=True)
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
