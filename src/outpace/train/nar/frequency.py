"""How well words are translated, by how often they stand in the training texts: rare words are what distillation loses.

    python -m outpace.train.nar.frequency runs/nar-ctc runs/nar-ctc-lexical --set multi30k:test:en-de --count 500

A word counts as found where the text has it too, as often as the reference at most (as in BLEU's unigrams).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from outpace.failures import guarded
from outpace.train.bleu import bleu, tokenise
from outpace.train.data import find_data

__all__ = ["BANDS", "Band", "by_frequency", "word_counts"]

BANDS = (0, 5, 20, 100, 1000)  # each band begins there; the last has no end


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Words of one band of frequency.

    Attributes:
        least: how often they stand in the training texts, at least.
        wanted: such words in the references.
        written: such words in the texts.
        found: in both.
    """

    least: int
    wanted: int
    written: int
    found: int

    @property
    def recall(self) -> float:
        """Share of the wanted words that are found; 0 where none is wanted."""
        return self.found / max(self.wanted, 1)

    @property
    def precision(self) -> float:
        """Share of the written words that are wanted; 0 where none is written."""
        return self.found / max(self.written, 1)

    @property
    def f1(self) -> float:
        """The harmonic mean of both."""
        return 2 * self.found / max(self.wanted + self.written, 1)


def word_counts(texts: Sequence[str]) -> Counter[str]:
    """Count the words of training texts."""
    return Counter(word for text in texts for word in tokenise(text))


def by_frequency(
    texts: Sequence[str], references: Sequence[str], counts: Counter[str], bands: Sequence[int] = BANDS
) -> list[Band]:
    """Return how many words of each band are wanted, written and found.

    Args:
        texts: as translated.
        references: one for each.
        counts: how often words stand in the training texts.
        bands: where each band begins, ascending, the first 0.
    """
    wanted, written, found = Counter[int](), Counter[int](), Counter[int]()
    for text, reference in zip(texts, references, strict=True):
        has, should = Counter(tokenise(text)), Counter(tokenise(reference))
        for tally, words in ((wanted, should), (written, has), (found, has & should)):
            for word, times in words.items():
                tally[max(least for least in bands if least <= counts[word])] += times
    return [Band(least=least, wanted=wanted[least], written=written[least], found=found[least]) for least in bands]


_HEAD = (
    "| model | BLEU | words seen at least | in references | recall | precision | F1 |\n|---|---|---|---|---|---|---|"
)


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.nar.frequency", description=__doc__)
    parser.add_argument("models", nargs="+", help="zoo names or directories")
    parser.add_argument("--set", default="multi30k:test:en-de")
    parser.add_argument("--method", default="one-pass")
    parser.add_argument("--count", type=int, default=0, help="sentences (default: all)")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return guarded(lambda _: _measure(given), [])


def _measure(given: argparse.Namespace) -> int:
    from outpace.api.engine import load
    from outpace.train.translation_quality import read_set, translate

    data = find_data(given.data)
    source, _, rest = given.set.partition(":")
    pairs = read_set(given.set, data, given.count)
    references = [target for _, target in pairs]
    counts = word_counts([target for _, target in read_set(f"{source}:train:{rest.partition(':')[2]}", data)])
    print(_HEAD)
    for name in given.models:
        results = translate(load(name, dtype="float32"), [text for text, _ in pairs], given.method, max_tokens=96)
        texts = [result.text for result in results]
        score = bleu(texts, references)
        for band in by_frequency(texts, references, counts):
            print(
                f"| {Path(name).name} | {score:.2f} | {band.least} | {band.wanted:,} | {band.recall:.1%} "
                f"| {band.precision:.1%} | {band.f1:.1%} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
