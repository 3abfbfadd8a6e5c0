"""The law that a drafter of another vocabulary gives to the target's next token, by the string that it writes.

The drafter writes tokens until the string they make decides a token of the target: the longest that the string begins
with, once no longer one can come. psi(t) sums the probabilities of all sequences that decide t (Timor et al. 2025,
arXiv 2502.05202, algorithm 3). Sequences multiply with every byte, so only the likeliest are followed; any other stops
where it stands and decides the longest token there is so far. That is a stopping rule like any other, what comes out is
a law, and it is known in full, which is all that a rejection rule asks for.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from outpace.draft.strings import Lexicon

__all__ = ["MOST_ROUNDS", "Borders", "StringLaw", "borders"]

_NEGLIGIBLE = 1e-3  # share of the law below which a sequence is not followed
MOST_ROUNDS = 16  # of drafter forwards per token of the target
_MOST_TABLES = 1024


@dataclass(frozen=True, slots=True)
class Table:
    """What each drafter token decides behind a given string.

    Attributes:
        closing, closed: [C] int64 drafter tokens that decide, and the target's tokens that they decide.
        going, stopping: [O] int64 drafter tokens behind which a longer token may come, and the target's token that is
            decided if the string is left there, -1 = none.
    """

    closing: Tensor
    closed: Tensor
    going: Tensor
    stopping: Tensor


@dataclass(slots=True)
class _Pairs:
    """A table in the making: pairs of a drafter token and a target token."""

    closing: list[tuple[int, int]] = field(default_factory=list)
    going: list[tuple[int, int]] = field(default_factory=list)

    def table(self) -> Table:
        columns = [torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1) for pairs in (self.closing, self.going)]
        return Table(*columns[0], *columns[1])


class Borders:
    """Where tokens of the target end in strings that a drafter writes.

    Args:
        words: the two vocabularies.
    """

    def __init__(self, words: Lexicon) -> None:
        self.words = words
        self._target, self._draft = sorted(words.target.ids), sorted(words.draft.ids)
        self._tables: dict[bytes, Table] = {}

    def table(self, written: bytes) -> Table:
        """Return what each drafter token decides behind a string that begins a token of the target."""
        if written not in self._tables:
            if len(self._tables) >= _MOST_TABLES:
                self._tables.clear()
            self._tables[written] = self._make(written)
        return self._tables[written]

    def _make(self, written: bytes) -> Table:
        # What stands already decides this token, if the string is left here.
        ids, pairs = self.words.target.ids, _Pairs()
        best = next((ids[written[:n]] for n in range(len(written), 0, -1) if written[:n] in ids), -1)
        self._walk(pairs, written, 0, (0, len(self._draft)), _range(self._target, written), best)
        # Special tokens spell nothing: first in a string they are a token themselves, later they end it.
        for index, text in enumerate(self.words.draft.bytes):
            special = -1 if text is not None else self.words.special_of_draft(index)
            decided = best if written else special  # the end of the text also ends a string
            if special >= 0 and decided >= 0:
                pairs.closing.append((index, decided))
        return pairs.table()

    def _walk(
        self, pairs: _Pairs, written: bytes, depth: int, drafts: tuple[int, int], targets: tuple[int, int], best: int
    ) -> None:
        """Descend both sorted vocabularies at once.

        Args:
            pairs: what is decided goes here.
            written: what stands, with the first `depth` bytes of the drafts behind it.
            depth: bytes that all these drafts share.
            drafts, targets: the entries that begin so.
            best: the longest target token that `written` begins with, -1 = none.
        """
        spelled, (at, end) = self.words.draft.ids, drafts
        while at < end:
            token = self._draft[at]
            # A draft that is used up: a longer target token may still come, or the longest so far is decided.
            if len(token) == depth:
                can_grow = targets[1] - targets[0] > (self._target[targets[0]] == written)
                if can_grow:
                    pairs.going.append((spelled[token], best))
                elif best >= 0:
                    pairs.closing.append((spelled[token], best))
                at += 1
                continue
            # All drafts with the same next byte go down together; where no target token goes on with that byte, all of
            # them decide at once, however many they are.
            _, stop = _range(self._draft, token[: depth + 1], (at, end))
            longer = written + token[depth : depth + 1]
            low, high = _range(self._target, longer, targets)
            if low < high:
                found = self.words.target.ids.get(longer, best)
                self._walk(pairs, longer, depth + 1, (at, stop), (low, high), found)
            elif best >= 0:
                pairs.closing += [(spelled[draft], best) for draft in self._draft[at:stop]]
            at = stop


def _range(ordered: list[bytes], head: bytes, within: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return where the entries that begin with `head` lie."""
    low, high = within or (0, len(ordered))
    low = bisect_left(ordered, head, low, high)
    trimmed = head.rstrip(b"\xff")
    if trimmed:
        high = bisect_left(ordered, trimmed[:-1] + bytes([trimmed[-1] + 1]), low, high)
    return low, high


@functools.lru_cache(maxsize=4)
def borders(words: Lexicon) -> Borders:
    """Return the borders between two vocabularies; their tables fill up as they are used."""
    return Borders(words)


class StringLaw:
    """One row's psi, growing as sequences are followed.

    Args:
        ends: the borders.
        most: sequences followed per round.

    Attributes:
        tokens, parents: the sequences followed so far, as a tree of drafter tokens; -1 = the text itself.
        front: nodes whose continuations are wanted next; empty = psi is complete.
    """

    def __init__(self, ends: Borders, most: int) -> None:
        self._borders, self._most, self._rounds = ends, most, 0
        self._psi = torch.zeros(ends.words.target.size, dtype=torch.float64)
        self._strings: dict[int, tuple[bytes, float]] = {-1: (b"", 1.0)}  # per node: what is written, its probability
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.front = [-1]

    def follow(self, probs: Tensor) -> None:
        """Take in the drafter's law behind each node of the front.

        Args:
            probs: [F, V] float64.
        """
        # 1 What is decided behind each node goes to psi at once; what may go on is collected over the whole front.
        weights, stops, tokens, owners = [], [], [], []
        for node, law in zip(self.front, probs, strict=True):
            written, chance = self._strings[node]
            table = self._borders.table(written)
            self._psi.index_add_(0, table.closed, chance * law[table.closing])
            weights.append(chance * law[table.going])
            stops.append(table.stopping)
            tokens.append(table.going)
            owners += [node] * len(table.going)
        self._rounds += 1
        weight, stop, token = torch.cat(weights), torch.cat(stops), torch.cat(tokens)
        # 2 Follow the likeliest few, as far as they matter; in the last round nothing goes on.
        best = weight.topk(min(self._most, len(weight))).indices
        best = best[weight[best] > (_NEGLIGIBLE if self._rounds < MOST_ROUNDS else 1.0)]
        # 3 All others stop where they stand, and decide the longest token that there is so far.
        is_left = stop >= 0
        is_left[best] = False
        self._psi.index_add_(0, stop[is_left], weight[is_left])
        self._grow([(owners[at], int(token[at]), float(weight[at])) for at in best.tolist()])

    def _grow(self, found: Sequence[tuple[int, int, float]]) -> None:
        self.front = list(range(len(self.tokens), len(self.tokens) + len(found)))
        for node, (parent, token, weight) in zip(self.front, found, strict=True):
            self.parents.append(parent)
            self.tokens.append(token)
            written = self._strings[parent][0] + self._borders.words.draft.join([token])
            self._strings[node] = (written, weight)

    def log_probs(self) -> Tensor:
        """Return the law's logarithm, [V] float64; where nothing could be decided, any law will do."""
        total = float(self._psi.sum())
        return (self._psi / total).log() if total > 0 else torch.zeros_like(self._psi)
