"""Words first, then phrases, then sentences: what is easy to say has fewer ways to be said.

Paper: Ding et al. (2021), "Progressive multi-granularity training for non-autoregressive translation", arXiv
2106.05546. Phrases are those consistent with a word alignment: Koehn, Och and Marcu (2003), section 3.
Differences: a few words and phrases are drawn from each sentence as they occur, where the paper takes the whole table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from tokenizers import Tokenizer

from outpace.papers import Paper
from outpace.setting import check, setting
from outpace.train.pairs import Pair, PairBatch, PairBatches, encode_pairs

from .alignment import Aligner, Link, split_words, word_ids

__all__ = ["Curriculum", "Span", "Staged", "consistent_phrases"]

PAPERS = (
    Paper(
        "Progressive Multi-Granularity Training for Non-Autoregressive Translation",
        "Ding et al.",
        2021,
        "2106.05546",
        39,
        "",
        "outpace train nar-ctc-curriculum",
    ),
)
_ALIGNER = Aligner()
Span = tuple[int, int, int, int]  # first and last word in the source, first and last in the target


def consistent_phrases(links: Sequence[Link], sizes: tuple[int, int], longest: int) -> list[Span]:
    """Return the pairs of spans whose links all stay inside, with at least one link.

    Args:
        links: (source place, target place).
        sizes: words of the source and of the target.
        longest: most words on either side.
    """
    there: list[list[int]] = [[] for _ in range(sizes[0])]
    back: list[list[int]] = [[] for _ in range(sizes[1])]
    for i, j in links:
        there[i].append(j)
        back[j].append(i)
    found = []
    for first in range(sizes[0]):
        low, high = sizes[1], -1
        for last in range(first, min(first + longest, sizes[0])):
            low, high = min([low, *there[last]]), max([high, *there[last]])
            if high - low >= longest:
                break
            if high >= 0 and all(first <= i <= last for row in back[low : high + 1] for i in row):
                found += [(first, last, *edges) for edges in _widened(low, high, back, longest)]
    return found


def _widened(low: int, high: int, back: Sequence[Sequence[int]], longest: int) -> list[tuple[int, int]]:
    """Return the span, and those longer by words without links on either side."""
    found = []
    start = low
    while start >= 0 and (start == low or not back[start]):
        end = high
        while end < len(back) and end - start < longest and (end == high or not back[end]):
            found.append((start, end))
            end += 1
        start -= 1
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Staged(PairBatches):
    """Pairs of sentences, and what stands in their place in earlier steps.

    Attributes:
        stages: (step before which it ends, its pairs), in order; then come the sentences.
    """

    stages: tuple[tuple[int, PairBatches], ...] = ()

    def batch(self, step: int) -> PairBatch:
        """Return the batch of a step; the sentences begin with their first batch, as if nothing had been before."""
        begun = 0
        for end, batches in self.stages:
            if step < end:
                return batches.batch(step - begun)
            begun = end
        return PairBatches.batch(self, step - begun)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curriculum:
    """What is trained on, and when.

    Attributes:
        words, phrases: share of the steps with pairs of words, and then of phrases; the rest has sentences.
        longest: words of a phrase on either side.
        drawn: pairs of each kind that are drawn from a sentence.
        aligner: finds which word belongs to which.
    """

    words: float = setting(0.01, least=0, most=1)
    phrases: float = setting(0.04, least=0, most=1)
    longest: int = setting(6, least=2)
    drawn: int = setting(3, least=1)
    aligner: Aligner = _ALIGNER

    def __post_init__(self) -> None:
        """Check the settings."""
        check(self)

    def switches(self, steps: int) -> tuple[int, int]:
        """Return the first step of phrases, and the first one of sentences."""
        return round(steps * self.words), round(steps * min(1.0, self.words + self.phrases))

    def staged(self, batches: PairBatches, tokenizer: Tokenizer, pairs: Sequence[Pair], steps: int) -> Staged:
        """Return the batches of a run: words and phrases of the pairs, then the sentences of `batches`."""
        units = self.units(pairs, batches.seed)
        longest = max((int(size) for size in batches.lengths), default=1)
        encoded = [encode_pairs(tokenizer, part, batches.budget, longest, batches.seed) for part in units]
        stages = zip(self.switches(steps), encoded, strict=True)
        kept = tuple((end, part) for end, part in stages if part.sources)
        own = {field.name: getattr(batches, field.name) for field in fields(PairBatches)}
        return Staged(**own, stages=kept)

    def units(self, pairs: Sequence[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
        """Return pairs of words and pairs of phrases, as they occur, with the spaces before them."""
        sides = [[split_words(pair[side]) for pair in pairs] for side in (0, 1)]
        links = self.aligner.align(*word_ids(*sides))
        generator = np.random.default_rng([seed, 39])
        words, phrases = list[Pair](), list[Pair]()
        for source, target, own in zip(*sides, links, strict=True):
            spans = consistent_phrases(own, (len(source), len(target)), self.longest)
            single = [span for span in spans if span[0] == span[1] and span[2] == span[3]]
            longer = [span for span in spans if span[0] != span[1] or span[2] != span[3]]
            for kind, found in ((words, single), (phrases, longer)):
                order = generator.permutation(len(found))[: self.drawn].tolist()
                kind += [_text(source, target, found[index]) for index in order]
        return words, phrases


def _text(source: Sequence[str], target: Sequence[str], span: Span) -> Pair:
    first, last, low, high = span
    return "".join(source[first : last + 1]), "".join(target[low : high + 1])
