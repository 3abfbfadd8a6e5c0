"""Reordering apart from the choice of words: which source words people put the other way round, and did a translation.

Fuzzy reordering scores fall where words are left out or mistranslated, so a poor translation seems reordered. Here a
pair of source words counts only where reference and translation hold both, told by links that both directions of an
aligner give (`outpace.train.nar.alignment`, learnt from the training pairs, so that every text is aligned alike).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from outpace.train.nar.alignment import UNALIGNED, Aligner, Lexicon, split_words
from outpace.train.pairs import Ints, Pair

__all__ = ["Words", "swapped"]

_UNSEEN = 1e-9  # a law below this is of words that never met


@dataclass(slots=True)
class Words:
    """Links words of a source with words of a text.

    Attributes:
        aligner: what the lexicons were learnt with.
        ids: of words in small letters.
        there: p(target word | source word).
        back: p(source word | target word).
    """

    aligner: Aligner = field(default_factory=Aligner)
    ids: dict[str, int] = field(default_factory=dict)
    there: Lexicon = field(init=False)
    back: Lexicon = field(init=False)

    @staticmethod
    def learnt(pairs: Sequence[Pair], most: int = 15_000) -> Words:
        """Learn both lexicons from pairs that people wrote."""
        words = Words()
        sources, targets = ([words.read(text) for text in side] for side in zip(*pairs[:most], strict=True))
        words.there = words.aligner.one_way(sources, targets)[0]
        words.back = words.aligner.one_way(targets, sources)[0]
        return words

    def read(self, text: str) -> Ints:
        """Return the ids of a text's words and marks."""
        found = [self.ids.setdefault(word.strip().lower(), len(self.ids)) for word in split_words(text)]
        return np.array(found, dtype=np.int64)

    def links(self, source: str, text: str) -> dict[int, int]:
        """Return the place in a text of each source word that has one, by links that both directions give."""
        sides = self.read(source), self.read(text)
        there, back = self._likeliest(self.there, *sides), self._likeliest(self.back, *sides[::-1])
        return {i: j for j, i in enumerate(there) if i != UNALIGNED and back[i] == j}

    def _likeliest(self, lexicon: Lexicon, sources: Ints, targets: Ints) -> list[int]:
        """Return the likeliest source place of each target word, `UNALIGNED` where that is the empty word."""
        law = lexicon.of_all(np.append(sources, lexicon.words - 1)[None, :], targets[:, None])
        joint = law * self.aligner.prior(len(targets), len(sources))
        best = joint.argmax(1)
        is_none = (best == len(sources)) | (joint.max(1) < _UNSEEN)
        return [int(place) for place in np.where(is_none, UNALIGNED, best)]


def swapped(reference: Mapping[int, int], text: Mapping[int, int]) -> NDArray[np.int64]:
    """Count the pairs of source words that the reference puts the other way round.

    Args:
        reference: place in the reference of source words.
        text: place in the text of source words.

    Returns:
        int64 [2]: of the pairs that the text holds as well, how many it swaps too, and how many there are.
    """
    both = [place for place in sorted(reference) if place in text]
    pairs = [(a, b) for a, b in combinations(both, 2) if reference[a] > reference[b]]
    return np.array([sum(text[a] > text[b] for a, b in pairs), len(pairs)], dtype=np.int64)
