"""How well words are translated, by how often they stand in the training texts: rare words are what distillation loses.

    python -m outpace.train.nar.frequency runs/nar-ctc runs/nar-ctc-lexical --set multi30k:test:en-de --count 500

A word counts as found where the text has it too, as often as the reference at most (as in BLEU's unigrams). How far the
recall of a model is from the first one's comes with its 95% interval over sentences drawn anew, the same for both.

    python -m outpace.train.nar.frequency --written runs/captions-teacher/written/multi30k-en-de.jsonl

Tells how many words of each band a teacher's targets still hold.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.train.bleu import bleu, tokenise
from outpace.train.data import find_data

__all__ = ["BANDS", "Band", "by_frequency", "recall_interval", "tallies", "word_counts"]

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


def tallies(
    texts: Sequence[str], references: Sequence[str], counts: Counter[str], bands: Sequence[int] = BANDS
) -> NDArray[np.int64]:
    """Return how many words of each band are wanted, written and found in each sentence, [sentences, bands, 3].

    Args:
        texts: as translated.
        references: one for each.
        counts: how often words stand in the training texts.
        bands: where each band begins, ascending, the first 0.
    """
    found = np.zeros((len(texts), len(bands), 3), dtype=np.int64)
    for index, (text, reference) in enumerate(zip(texts, references, strict=True)):
        has, should = Counter(tokenise(text)), Counter(tokenise(reference))
        for column, words in enumerate((should, has, has & should)):
            for word, times in words.items():
                found[index, np.searchsorted(bands, counts[word], side="right") - 1, column] += times
    return found


def by_frequency(
    texts: Sequence[str], references: Sequence[str], counts: Counter[str], bands: Sequence[int] = BANDS
) -> list[Band]:
    """Return how many words of each band are wanted, written and found; see `tallies`."""
    sums = tallies(texts, references, counts, bands).sum(0).tolist()
    return [
        Band(least=least, wanted=row[0], written=row[1], found=row[2]) for least, row in zip(bands, sums, strict=True)
    ]


def recall_interval(
    found: NDArray[np.int64], base: NDArray[np.int64], draws: int = 1000, seed: int = 0
) -> list[tuple[float, float]]:
    """Return per band the 95% interval of how far one recall is above another, by a paired bootstrap over sentences.

    Source: Koehn (2004), "Statistical significance tests for machine translation evaluation".

    Args:
        found, base: tallies of both models' texts of the same references.
        draws: bootstrap samples.
        seed: fixes them.
    """
    number = len(found)
    weights = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=draws)
    wanted = np.maximum(weights @ base[:, :, 0], 1)
    apart = (weights @ (found[:, :, 2] - base[:, :, 2])) / wanted
    low, high = np.quantile(apart, (0.025, 0.975), axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


_HEAD = (
    "| model | BLEU | words seen at least | in references | recall | above the first | precision | F1 |\n"
    "|---|---|---|---|---|---|---|---|"
)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.nar.frequency", description=__doc__)
    parser.add_argument("models", nargs="*", help="zoo names or directories")
    parser.add_argument("--written", type=Path, nargs="+", default=[], help="targets that teachers wrote, JSON lines")
    parser.add_argument("--set", nargs="+", default=["multi30k:test:en-de"], help="of one source, read together")
    parser.add_argument("--method", default="one-pass")
    parser.add_argument("--count", type=int, default=0, help="sentences (default: all)")
    parser.add_argument("--bands", type=int, nargs="+", default=BANDS, help="where each band begins, the first 0")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    if given.bands[0] != 0 or sorted(set(given.bands)) != list(given.bands):
        parser.error("--bands: the first is 0, and each is above the one before")
    if not given.models and not given.written:
        parser.error("name models, or texts with --written")
    torch.set_num_threads(given.threads)
    return guarded(lambda _: _measure(given), [])


def _measure(given: argparse.Namespace) -> int:
    from outpace.train.translation_quality import read_set

    data = find_data(given.data)
    source, _, rest = given.set[0].partition(":")
    kinds = {(name.partition(":")[0], name.rpartition(":")[2]) for name in given.set}
    if len(kinds) > 1:
        raise ConfigError("The sets are of several sources or directions.", "Words are counted in one training set.")
    counts = word_counts([target for _, target in read_set(f"{source}:train:{rest.partition(':')[2]}", data)])
    if given.written:
        _show_written(given, counts)
    if given.models:
        _show_models(given, [pair for name in given.set for pair in read_set(name, data, given.count)], counts)
    return 0


def _show_written(given: argparse.Namespace, counts: Counter[str]) -> None:
    from outpace.train.translation.written import read_written

    print("| texts | words seen at least | in the training texts | in these |\n|---|---|---|---|")
    for path in given.written:
        held = word_counts([target for _, target in read_written(path)])
        ends = [*given.bands[1:], float("inf")]
        for least, end in zip(given.bands, ends, strict=True):
            words = [word for word, count in counts.items() if least <= count < end]
            before, after = (sum(some[word] for word in words) for some in (counts, held))
            print(f"| {path.name} | {least} | {before:,} | {after:,} ({after / max(before, 1):.0%}) |", flush=True)


def _show_models(given: argparse.Namespace, pairs: Sequence[tuple[str, str]], counts: Counter[str]) -> None:
    from outpace.api.engine import load
    from outpace.train.translation_quality import translate

    references = [target for _, target in pairs]
    print(_HEAD)
    first = None
    for name in given.models:
        results = translate(load(name, dtype="float32"), [text for text, _ in pairs], given.method, max_tokens=96)
        texts = [result.text for result in results]
        found = tallies(texts, references, counts, given.bands)
        first = found if first is None else first
        score, rows = bleu(texts, references), by_frequency(texts, references, counts, given.bands)
        for band, (low, high) in zip(rows, recall_interval(found, first), strict=True):
            print(
                f"| {Path(name).name} | {score:.2f} | {band.least} | {band.wanted:,} | {band.recall:.1%} "
                f"| {100 * low:+.1f} to {100 * high:+.1f} | {band.precision:.1%} | {band.f1:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
