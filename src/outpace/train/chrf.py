"""Corpus chrF: characters in runs of 1 to 6, recall weighed twice, blanks left out, one reference.

Source: Popović (2015), "chrF: character n-gram F-score for automatic MT evaluation"; the choices are those that
sacrebleu prints as the signature below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

__all__ = ["CHRF_SIGNATURE", "chrf"]

CHRF_SIGNATURE = "nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no"
ORDER, BETA = 6, 2


def chrf(texts: Sequence[str], references: Sequence[str]) -> float:
    """Return corpus chrF2 in percent, one reference for each text."""
    written, wanted, matched = ([0] * ORDER for _ in range(3))
    for text, reference in zip(texts, references, strict=True):
        ours, theirs = ("".join(side.split()) for side in (text, reference))
        for order in range(1, ORDER + 1):
            found, known = _grams(ours, order), _grams(theirs, order)
            written[order - 1] += found.total() if known else 0
            wanted[order - 1] += known.total()
            matched[order - 1] += (found & known).total()
    both = [(a / b, a / c) for a, b, c in zip(matched, written, wanted, strict=True) if b and c]
    if not both:
        return 0.0
    precision = sum(found for found, _ in both) / len(both)
    recall = sum(found for _, found in both) / len(both)
    if not precision + recall:
        return 0.0
    weight = float(BETA * BETA)
    return 100 * (1 + weight) * precision * recall / (weight * precision + recall)


def _grams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))
