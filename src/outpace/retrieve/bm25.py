"""Okapi BM25: passages ranked by the words that they share with a query.

Source: Robertson, Zaragoza (2009), The probabilistic relevance framework: BM25 and beyond; the logarithm of Lucene,
which is never below 0.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["Bm25", "words"]


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    return re.findall(r"\w+", text.lower())


class Bm25:
    """Word statistics of passages.

    Args:
        passages: their texts.
        saturation: k1, how soon more of a word stops to count.
        normalisation: b, how much long passages are held back.
    """

    def __init__(self, passages: Sequence[str], saturation: float = 1.2, normalisation: float = 0.75) -> None:
        self._counts = [Counter(words(text)) for text in passages]
        self._sizes = [sum(counts.values()) for counts in self._counts]
        self._mean = sum(self._sizes) / max(1, len(passages))
        self._holding = Counter(word for counts in self._counts for word in counts)
        self._saturation, self._normalisation = saturation, normalisation

    def score(self, query: str, number: int) -> float:
        """Return a passage's score."""
        counts, size, total = self._counts[number], self._sizes[number], len(self._counts)
        scale = self._saturation * (1 - self._normalisation + self._normalisation * size / max(1e-9, self._mean))
        found = 0.0
        for word in set(words(query)):
            held, count = self._holding[word], counts[word]
            idf = math.log(1 + (total - held + 0.5) / (held + 0.5))
            found += idf * count * (self._saturation + 1) / (count + scale)
        return found

    def rank(self, query: str, count: int) -> list[tuple[int, float]]:
        """Return the best passages by number with their scores, best first; equals: the lower number."""
        scores = [self.score(query, number) for number in range(len(self._counts))]
        order = sorted(range(len(scores)), key=lambda number: -scores[number])
        return [(number, scores[number]) for number in order[:count]]
