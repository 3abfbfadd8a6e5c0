"""The two-dimensional window of lookahead decoding, laid out in one forward with candidate phrases.

A window of W columns and N - 1 levels stands behind the last token, the root (here W = 4, N = 4):

    level 0    root   a1   a2   a3
    level 1     b0    b1   b2   b3
    level 2     c0    c1   c2   c3

Column i of level l lies i + l places behind the root. A node of level 0 sees the nodes before it on its level; a deeper
one sees its column above it, and level 0 up to its column. So the window is a token tree, whose trunk is level 0 and
which has a tooth per column, and its mask is the one of any tree. The model's answers at the last level complete one
N-gram per column: in column 1 the phrase b1, c1 and the answer at c1, seen after a1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from outpace.cache import Cache
from outpace.draft.phrases import Phrase, PhrasePool
from outpace.run.tree import TokenTree, merge
from outpace.sampling import Sampler
from outpace.types import Proposal, Scores, Stream

__all__ = [
    "Branches",
    "GuessWindow",
    "answers",
    "branches",
    "first_paths",
    "first_windows",
    "learn",
    "merged",
    "phrases_only",
]


@dataclass(frozen=True, slots=True)
class GuessWindow:
    """The guesses of one row.

    Attributes:
        levels: N - 1 tuples of tokens, W - 1 at level 0, whose column 0 is the root, and W at the others.
        age: how many times the model has answered; the levels below the last `age` ones are made up.
    """

    levels: tuple[tuple[int, ...], ...]
    age: int = 0

    @property
    def tokens(self) -> list[int]:
        """All nodes, level by level."""
        return [token for level in self.levels for token in level]

    def phrases(self, last: int, answered: Sequence[int]) -> list[tuple[int, Phrase]]:
        """Return the phrase of each column and the token that it follows; none while levels are made up.

        Args:
            last: the root that was scored.
            answered: [W] answers at the last level.
        """
        if self.age < len(self.levels) - 1:
            return []
        columns = zip(*self.levels[1:], answered, strict=True)
        return list(zip((last, *self.levels[0]), columns, strict=True))

    def advance(self, answered: Sequence[int]) -> GuessWindow:
        """Return the window one place on: every level moves up, the answers become the last one."""
        return GuessWindow((self.levels[1][1:], *self.levels[2:], tuple(answered)), self.age + 1)


def first_windows(texts: Sequence[Sequence[int]], sampler: Sampler, width: int, ngram: int) -> list[GuessWindow | None]:
    """Return a window per row, filled with tokens of its text that its own noise picks.

    Args:
        texts: final tokens per row.
        sampler: of these rows.
        width: W; 0 = no windows.
        ngram: N, at least 3.
    """
    if width == 0:
        return [None] * len(texts)
    size = width * (ngram - 1) - 1
    noise = sampler.noise(Stream.DRAFT, torch.arange(size).expand(len(texts), size)).tolist()
    windows: list[GuessWindow | None] = []
    for text, draws in zip(texts, noise, strict=True):
        tokens = [text[draw % len(text)] for draw in draws]
        ends = range(width - 1, size + 1, width)
        windows.append(GuessWindow(tuple(tuple(tokens[max(0, end - width) : end]) for end in ends)))
    return windows


@lru_cache(maxsize=16)
def _parents(width: int, levels: int) -> tuple[int, ...]:
    """Return the parent of every node of a window, -1 = the root."""
    trunk = range(-1, width - 2)
    first = range(-1, width - 1)  # the trunk's nodes, root included, carry the teeth
    return (*trunk, *first, *range(width - 1, width - 1 + (levels - 2) * width))


@dataclass(frozen=True, slots=True)
class Branches:
    """What stands where in a proposal of `branches`: nodes of candidate phrases per row, then its window."""

    counts: list[int]
    windows: list[GuessWindow | None]


def branches(
    phrases: Sequence[Sequence[Phrase]],
    windows: Sequence[GuessWindow | None],
    cache: Cache,
    origin: str,
) -> Proposal:
    """Return one forward per row: a tree of candidate phrases first, then the window.

    Args:
        phrases: per row, what may follow its last token.
        windows: per row; None = no window.
        cache: of the model that will score it, for its device.
        origin: who drafts.
    """
    tree = merged(phrases)
    tokens, parents = [], []
    rows = zip(tree.tokens.tolist(), tree.parent.tolist(), tree.length, windows, strict=True)
    for node, parent, count, window in rows:
        own = () if window is None else _parents(len(window.levels[-1]), len(window.levels))
        tokens.append(node[:count] + ([] if window is None else window.tokens))
        parents.append(parent[:count] + [at + count if at >= 0 else -1 for at in own])
    lengths = [len(row) for row in tokens]
    padded = [[row + [0] * (max(lengths) - len(row)) for row in table] for table in (tokens, parents)]
    device = cache.device
    both = torch.tensor(padded, dtype=torch.int64, device=device).view(2, len(lengths), max(lengths))
    return Proposal(both[0], lengths, both[1], origin=origin, carry=Branches(tree.length, list(windows)))


def merged(paths: Sequence[Sequence[Phrase]]) -> TokenTree:
    """Return one tree per row of the paths that may follow its last token; shared beginnings become one node."""
    most, longest = max(map(len, paths)), max((len(path) for row in paths for path in row), default=0)
    table = torch.full((len(paths), most, longest), -1, dtype=torch.int64)
    for row, found in enumerate(paths):
        for index, path in enumerate(found):
            table[row, index, : len(path)] = torch.tensor(path, dtype=torch.int64)
    return merge(table)


def first_paths(tree: TokenTree, chains: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return per row the nodes of a merged tree's first path, of which the chain is a beginning, in order."""
    nodes = []
    for chain, parents in zip(chains, tree.parent.tolist(), strict=True):
        path = [-1]
        for _ in chain:  # at each depth the nodes of the first path come first
            path.append(parents.index(path[-1]))
        nodes.append(path[1:])
    return nodes


def phrases_only(proposal: Proposal, scores: Scores) -> tuple[Proposal, Scores]:
    """Return the part of a proposal of `branches` that may be accepted, the candidate phrases, with its scores."""
    counts = [min(count, length) for count, length in zip(proposal.carry.counts, proposal.length, strict=True)]
    width = max(counts)
    assert proposal.parent is not None  # branches are trees
    part = Proposal(proposal.tokens[:, :width], counts, proposal.parent[:, :width], origin=proposal.origin)
    return part, Scores(scores.logits[:, : 1 + width])


def answers(proposal: Proposal, scores: Scores) -> list[list[int] | None]:
    """Return per row the likeliest tokens at its window's last level; None where the window was cut or absent."""
    parts: list[torch.Tensor | None] = []
    rows = zip(proposal.carry.counts, proposal.carry.windows, proposal.length, strict=True)
    for row, (count, window, length) in enumerate(rows):
        is_whole = window is not None and length == count + len(window.tokens)
        width = len(window.levels[-1]) if window is not None else 0
        parts.append(scores.logits[row, 1 + length - width : 1 + length].argmax(-1) if is_whole else None)
    there = [part for part in parts if part is not None]
    found = iter(torch.stack(there).tolist() if there else [])
    return [None if part is None else next(found) for part in parts]


def learn(
    windows: Sequence[GuessWindow | None],
    pools: Sequence[PhrasePool],
    lasts: Sequence[int],
    answered: Sequence[Sequence[int] | None],
) -> list[GuessWindow | None]:
    """Put the n-grams that the answers complete into each row's pool, and return the windows one place on.

    Args:
        windows, pools: per row.
        lasts: the root that was scored, per row.
        answered: from `answers`; a row without any keeps its window.
    """
    moved: list[GuessWindow | None] = []
    for window, pool, last, row in zip(windows, pools, lasts, answered, strict=True):
        if window is not None and row is not None:
            for key, phrase in window.phrases(last, row):
                pool.add(key, phrase)
            window = window.advance(row)
        moved.append(window)
    return moved
