"""An FM-index over token ids: how often an n-gram occurs, which tokens may follow it, and in which texts it stands.

The index is of the texts written backwards, so that a token behind an n-gram is one backward step: the rows of the
sorted suffixes that begin with the n-gram are a range, and the range of the longer one follows from two ranks. Ranks
are found by bisection in the sorted places of each token in the transform (which is the index' psi function), tokens
that follow a range by marking what stands in its part of the transform, whole blocks of it at once.

Source: Ferragina, Manzini (2000), Opportunistic data structures with applications.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from outpace.draft.suffixes import suffix_array
from outpace.errors import ConfigError

__all__ = ["FmIndex", "Rows"]

_BLOCK = 4096  # rows whose tokens are marked together
Rows = tuple[int, int]


class FmIndex:
    """The substrings of a collection of texts; 10 to 12 bytes per token.

    Args:
        texts: token ids, text by text; no n-gram runs from one text into the next.
        vocab_size: V; ids lie below it.

    Attributes:
        num_tokens: of all texts.
        num_texts: how many there are, those without a token among them.

    Raises:
        ConfigError: there is no token, an id outside the vocabulary, or more tokens than a suffix array takes.
    """

    def __init__(self, texts: Sequence[Sequence[int] | npt.NDArray[Any]], vocab_size: int) -> None:
        self.vocab_size, self.num_texts = vocab_size, len(texts)
        self._check(texts)
        parts = [np.append(np.asarray(text, np.int64)[::-1], vocab_size) for text in texts]
        self.num_tokens = sum(len(part) - 1 for part in parts)
        if not self.num_tokens:
            raise ConfigError("The corpus holds no text.", "Give files with text in them.")
        tokens = np.concatenate(parts)
        try:
            order = suffix_array(tokens)
        except ValueError:
            raise ConfigError(f"The corpus has {len(tokens)} tokens.", "Index parts of it.") from None
        kind = np.uint16 if vocab_size < 2**16 else np.uint32
        self._transform = tokens[order - 1].astype(kind)  # the token that stands before each suffix
        self._places = np.argsort(self._transform, kind="stable").astype(np.uint32)
        self._first = np.zeros(vocab_size + 2, np.int64)  # row of the first suffix that begins with each token
        np.cumsum(np.bincount(tokens, minlength=vocab_size + 1), out=self._first[1:])
        ends = np.cumsum([len(part) for part in parts])
        self._texts = np.searchsorted(ends, order, side="right").astype(np.int32)
        self._marks = self._mark()

    def _check(self, texts: Sequence[Sequence[int] | npt.NDArray[Any]]) -> None:
        if any(len(text) and not 0 <= int(np.min(text)) <= int(np.max(text)) < self.vocab_size for text in texts):
            raise ConfigError(f"A token of the corpus is outside the vocabulary of {self.vocab_size}.", "Encode anew.")

    def _mark(self) -> npt.NDArray[np.uint8]:
        """Return per block of rows which tokens stand in its part of the transform, as bits."""
        blocks = range(0, len(self._transform), _BLOCK)
        marks = np.zeros((len(blocks), (self.vocab_size + 8) // 8), np.uint8)
        for number, at in enumerate(blocks):
            present = np.zeros(self.vocab_size + 1, np.bool_)
            present[self._transform[at : at + _BLOCK]] = True
            marks[number] = np.packbits(present)
        return marks

    @property
    def rows(self) -> Rows:
        """The rows of the empty n-gram: all."""
        return 0, len(self._transform)

    def extend(self, rows: Rows, token: int) -> Rows:
        """Return the rows of an n-gram with one more token behind it, an empty range where it does not occur."""
        if not 0 <= token < self.vocab_size:
            return 0, 0
        first, behind = int(self._first[token]), int(self._first[token + 1])
        places = self._places[first:behind]
        low, high = rows
        return first + int(places.searchsorted(low)), first + int(places.searchsorted(high))

    def find(self, ngram: Sequence[int]) -> Rows:
        """Return the rows of an n-gram."""
        rows = self.rows
        for token in ngram:
            rows = self.extend(rows, token)
            if rows[0] == rows[1]:
                break
        return rows

    def count(self, ngram: Sequence[int]) -> int:
        """Return how often an n-gram occurs."""
        low, high = self.find(ngram)
        return high - low

    def following(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return [V] which tokens follow an n-gram somewhere."""
        low, high = rows
        present = np.zeros(self.vocab_size + 1, np.bool_)
        first, last = -(-low // _BLOCK), high // _BLOCK
        if first >= last:
            present[self._transform[low:high]] = True
        else:
            present[self._transform[low : first * _BLOCK]] = True
            present[self._transform[last * _BLOCK : high]] = True
            whole = np.bitwise_or.reduce(self._marks[first:last], 0)
            present |= np.unpackbits(whole, count=self.vocab_size + 1).view(np.bool_)
        return present[:-1]

    def texts(self, rows: Rows, most: int = 0) -> dict[int, int]:
        """Return the texts in which an n-gram stands, and how often; `most` = occurrences looked at, 0 = all."""
        low, high = rows
        found = self._texts[low : min(high, low + most) if most else high]
        numbers, counts = np.unique(found, return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))
