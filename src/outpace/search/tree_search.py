"""A tree of steps that grows where a process reward and the number of visits say so (Monte Carlo tree search).

Paper: Wang, Fang, Wan, Wen, Zhu, et al. (2024), arXiv 2410.09671, OpenR (section 3.3, tree search guided by a process
    reward); selection by upper confidence bounds: Kocsis, Szepesvari (2006).
Guarantee: approximate; one round of one way is plain decoding, token for token.
Cost: each round writes `ways` steps side by side behind one text, and the best open text is written to its end once, at
    the end; every leaf of the tree keeps its pages.
Differences: a new text's value is what the reward says of it as it stands, and is not played out; all `ways` children
    of a text are written at once, and a text whose children disappoint may be written on again, in new ways. Means of
    siblings are scaled to 0 to 1, so that `explore` needs no unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

from outpace.search.base import Found, Search
from outpace.search.rewards import NONE, Reward
from outpace.search.table import Leaf, Table
from outpace.setting import setting

__all__ = ["TreeSearch"]


@dataclass(slots=True, eq=False)
class _Node:
    leaf: Leaf
    parent: _Node | None = None
    value: float = 0.0
    total: float = 0.0
    visits: int = 0
    children: list[_Node] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Of the values at and below the node."""
        return self.total / self.visits


@dataclass(frozen=True)
class TreeSearch(Search):
    """Tree search over steps.

    Attributes:
        rounds: how often the tree grows.
        ways: in which a text is written on.
        explore: weight of what was seldom tried.
        marks: characters that end a step.
        step: most tokens of a step.
        reward: how good texts are so far; "" = their mean log-probability per token.

    Raises:
        ConfigError: a number out of range, or a reward that cannot be read.
    """

    rounds: int = setting(16, least=1)
    ways: int = setting(4, least=1)
    explore: float = setting(1.0, least=0, is_finite=True)
    marks: str = "\n"
    step: int = setting(32, least=1)
    reward: Reward = NONE

    name: ClassVar[str] = "tree-search"
    summary: ClassVar[str] = "Grows a tree of steps where a process reward, and curiosity, point."

    @property
    def draws(self) -> bool:
        """All texts are one without noise."""
        return self.ways > 1

    @property
    def num_rows(self) -> int:
        """All texts of the tree."""
        return self.rounds * self.ways + 1

    @property
    def noted(self) -> frozenset[str]:
        """Log-probabilities, where they decide."""
        return frozenset() if self.reward else frozenset({"log_probs"})

    def reduced(self) -> Search:
        """Return the search of one text."""
        return replace(self, rounds=1, ways=1)

    def search(self, table: Table) -> Found:
        """Grow the tree, write the best open text to its end, and return the best of those that have ended."""
        marks, root, seen = table.marked(self.marks), _Node(table.sample(0)), list[_Node]()
        if self.reward:
            (root.value,) = table.score([root.leaf], self.reward)
        for turn in range(self.rounds):
            node = self._selected(root)
            first, numbers = len(node.children), range(len(node.children), len(node.children) + self.ways)
            starts = [table.sample(at) if node is root else table.fork(node.leaf, at) for at in numbers]
            leaves = yield from table.write(starts, tokens=self.step, marks=marks)
            for number, leaf in enumerate(leaves):
                leaf.number = turn * self.ways + number
            for leaf, value in zip(leaves, table.score(leaves, self.reward), strict=True):
                node.children.append(child := _Node(leaf, node, value))
                seen.append(child)
            for child in node.children[first:]:
                _tell(child)
        is_open = [not one.leaf.is_over for one in seen]
        # Of equally good ones the longest: it is nearest to its end.
        best = max(range(len(seen)), key=lambda at: (is_open[at], seen[at].value, len(seen[at].leaf.written)))
        last = yield from table.write([seen[best].leaf])
        ended = [*(one.leaf for one in seen if one.leaf.is_over), *(last if is_open[best] else [])]
        return table.best(ended, table.score(ended, self.reward), 1)

    def _selected(self, root: _Node) -> _Node:
        """Return the text that is to be written on, for the first time or again."""
        node = root
        while node.children:
            alive = [child for child in node.children if not child.leaf.is_over and child.value > -math.inf]
            known = [child.value for child in node.children if child.value > -math.inf] or [0.0]
            again = node.value if self.reward and node.value > -math.inf else sum(known) / len(known)
            options = [(one.mean, float(one.visits), one) for one in alive]
            options.append((again, len(node.children) / self.ways, node))
            low, high, tries = min(o[0] for o in options), max(o[0] for o in options), math.log(max(2, node.visits))
            merits = [(m - low) / ((high - low) or 1.0) + self.explore * math.sqrt(tries / n) for m, n, _ in options]
            chosen = options[merits.index(max(merits))][2]
            if chosen is node:
                break
            node = chosen
        return node


def _tell(node: _Node) -> None:
    """Count a new text's value on the way to the root."""
    at: _Node | None = node
    while at is not None and node.value > -math.inf:
        at.total, at.visits, at = at.total + node.value, at.visits + 1, at.parent
