"""Which required words a text holds so far: an automaton over tokens.

Source of the matching: Aho and Corasick (1975), one trie for all spellings; a state adds which words were found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Automaton"]


@dataclass(slots=True)
class Automaton:
    """States are numbered from 0, where every text begins.

    Attributes:
        other: per state, the next one under every token that is not named in `named`.
        named: per state, the next one under the tokens that lead elsewhere.
        is_accepting: per state, whether all words were found; such a state is never left.
    """

    other: list[int] = field(default_factory=lambda: [0])
    named: list[dict[int, int]] = field(default_factory=lambda: [{}])
    is_accepting: list[bool] = field(default_factory=lambda: [True])

    def after(self, state: int, token: int) -> int:
        """Return the state after one more token."""
        return self.named[state].get(token, self.other[state])

    @classmethod
    def of_words(cls, words: Sequence[Sequence[Sequence[int]]]) -> Automaton:
        """Return the automaton of texts that hold a spelling of every word.

        Args:
            words: per word its spellings, each a sequence of tokens.
        """
        trie, back, found = _trie(words)
        everything, start = (1 << len(words)) - 1, (0, 0)
        number, queue, made = {start: 0}, [start], cls([], [], [])
        tokens = {token for children in trie for token in children}
        for mask, node in queue:  # grows while it is walked
            ways: dict[int, tuple[int, int]] = {}
            for token in tokens if mask != everything else ():
                to = _step(trie, back, node, token)
                reached = mask | found[to]
                ways[token] = (reached, 0 if reached == everything else to)
            plain = (mask, 0)
            for to_state in [plain, *ways.values()]:
                if to_state not in number:
                    number[to_state] = len(number)
                    queue.append(to_state)
            made.other.append(number[plain])
            made.named.append({token: number[way] for token, way in ways.items() if way != plain})
            made.is_accepting.append(mask == everything)
        return made


def _trie(words: Sequence[Sequence[Sequence[int]]]) -> tuple[list[dict[int, int]], list[int], list[int]]:
    """Return the trie's children, the longest proper suffix of each node in it, and the words (bits) found there."""
    trie, found = [dict[int, int]()], [0]
    for bit, spellings in enumerate(words):
        for spelling in spellings:
            node = 0
            for token in spelling:
                if token not in trie[node]:
                    trie[node][token] = len(trie)
                    trie.append({})
                    found.append(0)
                node = trie[node][token]
            found[node] |= 1 << bit
    back, queue = [0] * len(trie), list(trie[0].values())
    for node in queue:  # by depth
        for token, child in trie[node].items():
            back[child] = _step(trie, back, back[node], token)
            found[child] |= found[back[child]]
            queue.append(child)
    return trie, back, found


def _step(trie: Sequence[Mapping[int, int]], back: Sequence[int], node: int, token: int) -> int:
    while node and token not in trie[node]:
        node = back[node]
    return trie[node].get(token, 0)
