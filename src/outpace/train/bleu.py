"""Corpus BLEU: up to 4-grams, mteval-v13a tokenisation, case kept, one reference, exponential smoothing.

Source: Papineni et al. (2002); the choices are those of Post (2018), so figures compare with what sacrebleu prints
under the same signature.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["SIGNATURE", "bleu", "bleu_counts", "bleu_of", "tokenise"]

SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp"

ORDER = 4
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_SPLITS = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),  # every mark but ' , - .
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # . and , unless a digit stands before
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),  # or behind
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


def tokenise(text: str) -> list[str]:
    """Split a text into words and marks."""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "
    for pattern, spaced in _SPLITS:
        text = pattern.sub(spaced, text)
    return text.split()


def bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    """Return corpus BLEU in percent, one reference for each text."""
    pairs = zip(texts, references, strict=True)
    return bleu_of([sum(column) for column in zip(*(bleu_counts(*pair) for pair in pairs), strict=True)])


def bleu_counts(text: str, reference: str) -> list[int]:
    """Return what BLEU counts in one text: matches and n-grams of each order, its words, the reference's."""
    words, wanted = tokenise(text), tokenise(reference)
    grams = [_grams(words, order) for order in range(1, ORDER + 1)]
    matches = [(own & _grams(wanted, order)).total() for order, own in enumerate(grams, 1)]
    return [*matches, *(own.total() for own in grams), len(words), len(wanted)]


def bleu_of(counts: Sequence[float]) -> float:
    """Return corpus BLEU in percent from the sums of its texts' counts; 0 of none."""
    matches, totals = counts[:ORDER], counts[ORDER : 2 * ORDER]
    if not len(counts) or not matches[0] or not totals[-1]:
        return 0.0
    length, reference_length = counts[2 * ORDER :]
    brevity = min(0.0, 1 - reference_length / length)
    return 100 * math.exp(brevity + sum(map(math.log, _precisions(matches, totals))) / ORDER)


def _grams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def _precisions(matches: Sequence[float], totals: Sequence[float]) -> list[float]:
    """Return each order's precision; the n-th order without a match counts 1 / 2^n of a match."""
    found, missing = [], 1.0
    for match, total in zip(matches, totals, strict=True):
        missing = missing / 2 if not match else missing
        found.append((match or missing) / total)
    return found
