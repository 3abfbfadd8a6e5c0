"""Prefixes that were read before: a radix tree from tokens to the pages that hold their entries.

Every edge is one full page of tokens, so that a page is found by a look-up and a tail shorter than a page is not kept.
A match may still end inside a page: its first entries are good, and whoever writes behind them gets a copy. Entries
depend on all that comes before them and on the model, so each tree hangs on a key of the caller's.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Sequence

from outpace.cache.pages import Pages, Table

__all__ = ["Prefixes"]


class _Node:
    """One page, behind the pages of its parents.

    Attributes:
        page: -1 at a root.
        used: when it was last on a path that was asked for or put in, on the tree's own clock.
    """

    __slots__ = ("children", "page", "parent", "tokens", "used")

    def __init__(self, page: int, parent: _Node | None, tokens: tuple[Hashable, ...]) -> None:
        self.page, self.parent, self.tokens = page, parent, tokens
        self.children: dict[tuple[Hashable, ...], _Node] = {}
        self.used = 0


class Prefixes:
    """Which pages hold the entries of which tokens. It holds its pages itself, so that they outlive the rows.

    When the pool runs short, pages that nobody else holds are given back, those used longest ago first and always from
    a path's end.

    Args:
        pages: the pool.

    Attributes:
        num_queried, num_hit: tokens that were asked for, and that were found.
    """

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.num_queried = self.num_hit = 0
        self._roots: dict[Hashable, _Node] = {}
        self._num_nodes, self._clock, self._ties = 0, 0, itertools.count()
        self._ends: list[tuple[int, int, _Node]] = []  # heap of (used, tie, leaf); entries go stale and are skipped
        pages.evict = self.evict

    @property
    def num_pages(self) -> int:
        """Pages that the tree holds."""
        return self._num_nodes

    @property
    def num_idle(self) -> int:
        """Pages that the tree alone holds: a pool has them beside its free ones."""
        return sum(self.pages.uses(node.page) == 1 for root in self._roots.values() for node in _below(root))

    def match(self, key: Hashable, tokens: Sequence[Hashable]) -> tuple[int, Table]:
        """Return how many leading tokens are known, and a table of the pages that hold their entries.

        The table holds its pages until it is dropped; `PagedCache.attach` takes its own hold. A decoder needs its last
        token forwarded, so ask for all tokens but that.

        Args:
            key: of whom the entries are: model, adapter, how positions turn, salt.
            tokens: what will be read; soft embeddings take part as anything hashable.
        """
        self.num_queried += len(tokens)
        path, length = self._walk(key, tokens)
        if path:
            best, shared = _nearest(path[-1], tokens[length : length + self.pages.page_size])
            if shared:
                path.append(best)
                length += shared
        self._touch(path)
        self.num_hit += length
        pages = [node.page for node in path if node.page >= 0]
        self.pages.hold(pages)
        return length, Table(self.pages, pages)

    def insert(self, key: Hashable, tokens: Sequence[Hashable], table: Sequence[int] | Table) -> None:
        """Put in the full pages of a row; of tokens that are known already the tree keeps the pages it has.

        Args:
            key, tokens: as of `match`; only tokens whose entries are valid.
            table: the row's pages.
        """
        size, numbers = self.pages.page_size, list(table)
        path, length = self._walk(key, tokens)
        node = path[-1] if path else self._roots.setdefault(key, _Node(-1, None, ()))
        for at in range(length // size, min(len(tokens) // size, len(numbers))):
            words = tuple(tokens[at * size : (at + 1) * size])
            child = node.children[words] = _Node(numbers[at], node, words)
            self.pages.hold([child.page])
            self._num_nodes += 1
            path.append(child)
            node = child
        self._touch(path)

    def evict(self, count: int) -> int:
        """Give back up to `count` pages that nobody else holds; return how many it was."""
        given, busy = 0, []
        while given < count and self._ends:
            used, tie, node = heapq.heappop(self._ends)
            if node.page < 0 or node.children or node.used != used:
                continue  # stale: gone, no leaf any more, or listed again since
            if self.pages.uses(node.page) > 1:
                busy.append((used, tie, node))
                continue
            self._remove(node)
            given += 1
        for entry in busy:
            heapq.heappush(self._ends, entry)
        return given

    def clear(self) -> None:
        """Forget everything, and drop all pages."""
        self.pages.drop([node.page for root in self._roots.values() for node in _below(root)])
        self._roots.clear()
        self._ends.clear()
        self._num_nodes = 0

    def _walk(self, key: Hashable, tokens: Sequence[Hashable]) -> tuple[list[_Node], int]:
        """Return the nodes of the full pages that are known, the root first, and how many tokens they hold."""
        node, size, length = self._roots.get(key), self.pages.page_size, 0
        path = [] if node is None else [node]
        while node is not None and length + size <= len(tokens):
            node = node.children.get(tuple(tokens[length : length + size]))
            if node is not None:
                path.append(node)
                length += size
        return path, length

    def _touch(self, path: Sequence[_Node]) -> None:
        """Note that a path was used now."""
        self._clock += 1
        for node in path:
            node.used = self._clock
        if path:
            self._list(path[-1])

    def _list(self, node: _Node) -> None:
        """Note a leaf as one that may go."""
        if node.page < 0 or node.children:
            return
        if len(self._ends) > 4 * self._num_nodes + 64:  # mostly stale
            leaves = [leaf for root in self._roots.values() for leaf in _below(root) if not leaf.children]
            self._ends = [(leaf.used, next(self._ties), leaf) for leaf in leaves if leaf is not node]
            heapq.heapify(self._ends)
        heapq.heappush(self._ends, (node.used, next(self._ties), node))

    def _remove(self, node: _Node) -> None:
        parent = node.parent
        assert parent is not None  # only roots have none, and they hold no page
        del parent.children[node.tokens]
        self.pages.drop([node.page])
        node.page = -1
        self._num_nodes -= 1
        if parent.parent is None and not parent.children:
            self._roots = {key: root for key, root in self._roots.items() if root is not parent}
        self._list(parent)


def _nearest(node: _Node, tokens: Sequence[Hashable]) -> tuple[_Node, int]:
    """Return the child that has the most leading tokens in common with what is left, and how many."""
    best, most = node, 0
    for words, child in node.children.items():
        pairs = enumerate(zip(words, tokens, strict=False))
        same = next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(words), len(tokens)))
        if same > most:
            best, most = child, same
    return best, most


def _below(root: _Node) -> list[_Node]:
    """Return all nodes with a page."""
    found, queue = [], [root]
    while queue:
        node = queue.pop()
        queue += node.children.values()
        if node.page >= 0:
            found.append(node)
    return found
