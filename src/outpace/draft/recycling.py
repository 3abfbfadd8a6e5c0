"""The candidates that followed each token when it was last scored, and trees drawn from them.

Source: Luo et al. (2024), Turning Trash into Treasure, arXiv 2408.08696: an adjacency matrix of V x k token ids, and a
tree of fixed shape filled from it breadth first.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from torch import Tensor

from outpace.draft.likeliest import likeliest
from outpace.draft.memory import Memory
from outpace.errors import ConfigError

__all__ = ["RecyclingMemory", "RecyclingTable", "TreeShape", "likeliest_ids", "tables", "tree_shape"]

Ids = npt.NDArray[np.int64]

# How often the candidate of each rank was the next token, a table filled by decoding; measured on the shipped prompts.
_RANKS = (0.435, 0.1, 0.039, 0.027, 0.016, 0.012, 0.01, 0.009)


@dataclass(frozen=True, slots=True)
class TreeShape:
    """A tree without tokens, breadth first.

    Attributes:
        parent: [N] index of each node's parent, -1 = the root.
        rank: [N] which of its parent's candidates a node is.
        levels: how many nodes the first 0, 1, 2, ... levels hold.
        expected: tokens that a step is expected to write with trees of 0, 1, 2, ... nodes of this kind.
    """

    parent: Ids
    rank: Ids
    levels: tuple[int, ...]
    expected: tuple[float, ...]


@lru_cache(maxsize=32)
def tree_shape(nodes: int, width: int, depth: int) -> TreeShape:
    """Return the tree of that many nodes that is expected to accept most, if ranks come true as they were measured.

    Args:
        nodes: at most so many.
        width: most children per node.
        depth: most levels.
    """
    odds = _RANKS + tuple(_RANKS[-1] * _RANKS[-1] / (_RANKS[-1] + 0.01 * n) for n in range(1, width))
    heap: list[tuple[float, tuple[int, ...]]] = [(-odds[rank], (rank,)) for rank in range(width)]
    heapq.heapify(heap)
    paths: list[tuple[int, ...]] = []
    expected = [1.0]
    while heap and len(paths) < nodes:
        negative, path = heapq.heappop(heap)
        paths.append(path)
        expected.append(expected[-1] - negative)
        if len(path) < depth:
            for rank in range(width):
                heapq.heappush(heap, (negative * odds[rank], (*path, rank)))
    paths.sort(key=lambda path: (len(path), path))
    index = {path: number for number, path in enumerate(paths)}
    parent = np.array([index.get(path[:-1], -1) for path in paths], dtype=np.int64)
    ranks = np.array([path[-1] for path in paths], dtype=np.int64)
    sizes = [sum(len(path) <= level for path in paths) for level in range(len(paths[-1]) + 1)]
    return TreeShape(parent, ranks, tuple(sizes), tuple(expected))


class RecyclingTable:
    """For every token, its latest `width` likeliest successors.

    Args:
        vocab_size: V.
        width: k.
        is_shared: copies are the same table (it belongs to a memory).

    Attributes:
        ids: [V + 1, k] int32; -1 = not known yet. The last row, which the index -1 finds, knows nothing.
    """

    def __init__(self, vocab_size: int, width: int, is_shared: bool = False) -> None:
        self.ids = np.full((vocab_size + 1, width), -1, dtype=np.int32)
        self.is_shared = is_shared

    @property
    def num_bytes(self) -> int:
        """Size of the table."""
        return int(self.ids.nbytes)

    def learn(self, places: Mapping[int, int], candidates: npt.NDArray[np.integer]) -> None:
        """Take in what was scored.

        Args:
            places: which row of the candidates belongs to each token.
            candidates: [N, k] ids, the likeliest first.
        """
        self.ids[list(places)] = candidates[list(places.values())]

    def grow(self, root: int, shape: TreeShape, depth: int) -> tuple[Ids, Ids]:
        """Return tokens and parents of the tree that grows from a token.

        Args:
            root: the last final token.
            shape: of the tree; nodes whose token is not known yet are left out with their children.
            depth: levels that are wanted.
        """
        levels = shape.levels[: depth + 1]
        tokens = np.empty(levels[-1] + 1, dtype=np.int64)
        tokens[0] = root
        parent, rank = shape.parent[: levels[-1]], shape.rank[: levels[-1]]
        for low, high in pairwise(levels):
            tokens[low + 1 : high + 1] = self.ids[tokens[parent[low:high] + 1], rank[low:high]]
        is_known = tokens >= 0
        if is_known.all():
            return tokens[1:], parent
        place = is_known.cumsum() - 2  # where nodes go, the root to -1
        kept = is_known[1:]
        return tokens[1:][kept], place[parent[kept] + 1]

    def copy(self) -> RecyclingTable:
        """Return an independent copy (a forked row); a memory's table stays shared."""
        if self.is_shared:
            return self
        other = RecyclingTable(0, self.ids.shape[1])
        other.ids = self.ids.copy()
        return other


def likeliest_ids(logits: Tensor, width: int) -> npt.NDArray[np.integer]:
    """Return the ids of the `width` largest of logits [B, A, V], largest first, [B, A, width]."""
    rows, asked, vocab = logits.shape
    ids: npt.NDArray[np.integer] = likeliest(logits.reshape(-1, vocab), width).view(rows, asked, width).cpu().numpy()
    return ids


def tables(rows: int, vocab_size: int, width: int, memory: RecyclingMemory | None) -> list[RecyclingTable]:
    """Return a table per row: the memory's, or empty ones.

    Raises:
        ConfigError: the memory holds another number of candidates per token.
    """
    width = min(width, vocab_size)
    shared = None if memory is None else memory.table(width)
    return [shared or RecyclingTable(vocab_size, width) for _ in range(rows)]


class RecyclingMemory(Memory):
    """A table that outlives calls, for the method `token-recycling`: later calls start with what earlier ones saw."""

    def __init__(self) -> None:
        super().__init__()
        self._table: RecyclingTable | None = None

    def table(self, width: int) -> RecyclingTable:
        """Return the table, made at first use.

        Raises:
            ConfigError: it holds another number of candidates per token.
        """
        assert self.vocab_size is not None  # `claim` has bound it
        if self._table is None:
            self._table = RecyclingTable(self.vocab_size, width, is_shared=True)
        held = self._table.ids.shape[1]
        if held != width:
            raise ConfigError(
                f"The RecyclingMemory holds {held} candidates per token, the method wants {width}.",
                f"Set candidates={held}, or keep another memory.",
            )
        return self._table
