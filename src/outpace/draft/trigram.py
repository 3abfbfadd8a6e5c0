"""A tri-gram law that is updated while decoding, and a tree search on it that balances exploring and exploiting.

Source: Liu et al. (2024), Adaptive Draft-Verification (ADED), arXiv 2407.12021: tri-gram matrix as a stand-in for the
model, drafts found by Monte Carlo tree search; gain, cap and the 12 successors kept are those of the authors' code. The
score is the PUCT rule of AlphaZero (Silver et al. 2017, arXiv 1712.01815) with its constants.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from outpace.draft.memory import Memory
from outpace.errors import ConfigError

__all__ = ["TrigramLaw", "TrigramMemory", "TrigramTable", "bonus", "search"]

TrigramLaw = list[tuple[int, float]]  # tokens and their probabilities, likeliest first
_Pair = tuple[int, int]

_GAIN, _CAP = (
    0.04,
    3.0,
)  # weight of one occurrence beside a corpus of weight 1, and the most weight that occurring gives
_GROWTH = 19652.0  # visits after which exploring is worth noticeably more


class TrigramMemory(Memory):
    """Tri-gram counts that outlive calls, for the method `aded`: of a corpus, of earlier outputs, or of both.

    Args:
        max_trigrams: when more are held, all counts are halved and those that reach 0 are forgotten.

    Raises:
        ConfigError: max_trigrams is below 1.
    """

    def __init__(self, max_trigrams: int = 1_000_000) -> None:
        super().__init__()
        if max_trigrams < 1:
            raise ConfigError(f"max_trigrams is {max_trigrams}.", "max_trigrams must be 1 or more.")
        self.max_trigrams = max_trigrams
        self.num_trigrams = 0
        self._counts: dict[_Pair, dict[int, int]] = {}

    def add(self, tokens: Sequence[int]) -> None:
        """Count the tri-grams of a text."""
        self.note(tokens)
        for first, second, third in zip(tokens, tokens[1:], tokens[2:], strict=False):
            self.count(first, second, third)

    def count(self, first: int, second: int, third: int) -> None:
        """Count one tri-gram."""
        after = self._counts.setdefault((first, second), {})
        self.num_trigrams += third not in after
        after[third] = after.get(third, 0) + 1
        if self.num_trigrams > self.max_trigrams:
            self._halve()

    def prior(self, pair: _Pair) -> dict[int, float]:
        """Return how likely each known token is to follow two tokens."""
        after = self._counts.get(pair, {})
        total = sum(after.values())
        return {token: count / total for token, count in after.items()}

    def _halve(self) -> None:
        halved = {pair: {t: n // 2 for t, n in after.items() if n > 1} for pair, after in self._counts.items()}
        self._counts = {pair: after for pair, after in halved.items() if after}
        self.num_trigrams = sum(len(after) for after in self._counts.values())


class TrigramTable:
    """What followed each two tokens in one row's text, added to what a memory knows.

    Args:
        branch: most tokens per law.
        given: leading tokens that are not the run's output, and do not go into the memory.
        memory: counts of other texts, or None.
        before: what stands before the text and is counted too, such as a source.
    """

    def __init__(
        self, branch: int, given: int = 0, memory: TrigramMemory | None = None, before: Sequence[int] = ()
    ) -> None:
        self.branch = branch
        self._given, self._memory, self._size = given, memory, 0
        self._weight: dict[_Pair, dict[int, float]] = {}
        for first, second, third in zip(before, before[1:], before[2:], strict=False):
            self._add(first, second, third)

    def extend(self, text: Sequence[int]) -> None:
        """Take in what the text has grown by."""
        for end in range(max(2, self._size), len(text)):
            first, second, third = text[end - 2], text[end - 1], text[end]
            self._add(first, second, third)
            if self._memory is not None and end >= self._given:
                self._memory.count(first, second, third)
        self._size = len(text)

    def _add(self, first: int, second: int, third: int) -> None:
        after = self._weight.setdefault((first, second), {})
        after[third] = min(_CAP, after.get(third, 0.0) + _GAIN)

    def law(self, first: int, second: int) -> TrigramLaw:
        """Return the likeliest tokens after two tokens: the memory's probability plus the row's weight, normalised."""
        weight = self._weight.get((first, second), {})
        if self._memory is not None:
            prior = self._memory.prior((first, second))
            weight = {token: prior.get(token, 0.0) + weight.get(token, 0.0) for token in {**prior, **weight}}
        total = sum(weight.values())
        best = heapq.nlargest(self.branch, weight.items(), key=lambda item: item[1])
        return [(token, value / total) for token, value in best]

    def copy(self) -> TrigramTable:
        """Return an independent copy (a forked row); the memory stays shared."""
        other = TrigramTable(self.branch, self._given, self._memory)
        other._size = self._size
        other._weight = {pair: dict(after) for pair, after in self._weight.items()}
        return other


def bonus(parent_visits: int, exploration: float) -> float:
    """Return the weight of curiosity at a node: a child of probability P seen n times gets bonus * P / (1 + n).

    Args:
        parent_visits: of all its children together.
        exploration: its constant part.
    """
    return (exploration + math.log((parent_visits + _GROWTH + 1) / _GROWTH)) * math.sqrt(parent_visits)


@dataclass(slots=True, eq=False)
class _Node:
    """A drafted or possible token.

    Attributes:
        number: among the drafted nodes, -1 = not drafted.
        visits: simulations that went through it.
        total: what they were worth.
        open: children below which something is left to draft.
    """

    token: int
    prior: float
    number: int = -1
    visits: int = 0
    total: float = 0.0
    open: list[_Node] = field(default_factory=list)


def search(
    law: Callable[[int, int], TrigramLaw], first: int, second: int, nodes: int, depth: int, exploration: float
) -> tuple[list[int], list[int]]:
    """Return tokens and parents of the tree that simulations find after two tokens.

    Each simulation walks from the root to the child with the best PUCT score, until it meets one that is not drafted
    yet, drafts it, and credits every node on the way with the probability of the walk from there on. What is drafted
    to its end is passed over, so that every simulation drafts a node.

    Args:
        law: the likeliest tokens after two tokens.
        first, second: the last two tokens.
        nodes: most nodes.
        depth: most levels.
        exploration: weight of what is seldom visited.
    """
    tokens: list[int] = []
    parents: list[int] = []
    root = _Node(second, 1.0)
    if depth > 0:
        root.open = [_Node(*item) for item in law(first, second)]
    while root.open and len(tokens) < nodes:
        walk = _walk(root, exploration)
        leaf, above = walk[-1], walk[-2]
        leaf.number = len(tokens)
        tokens.append(leaf.token)
        parents.append(above.number)
        if len(walk) <= depth:
            leaf.open = [_Node(*item) for item in law(above.token, leaf.token)]
        _credit(walk)
    return tokens, parents


def _walk(root: _Node, exploration: float) -> list[_Node]:
    """Return the nodes from the root to the one that is drafted next."""
    walk, node, seen = [root], root, root.visits
    while node is root or node.number >= 0:
        weight, most, best = bonus(seen, exploration), float("-inf"), node
        for child in node.open:  # likeliest first, so that it wins where scores are equal
            score = weight * child.prior / (1 + child.visits)
            if child.visits:
                score += child.total / child.visits
            if score > most:
                most, best = score, child
        node = best
        walk.append(node)
        seen = node.visits - 1  # its first visit ended there
    return walk


def _credit(walk: list[_Node]) -> None:
    """Count the walk, and strike off what is drafted to its end."""
    value = 1.0
    for place in range(len(walk) - 1, -1, -1):
        node = walk[place]
        value *= node.prior
        node.visits += 1
        node.total += value
        if place and not node.open:
            walk[place - 1].open.remove(node)
