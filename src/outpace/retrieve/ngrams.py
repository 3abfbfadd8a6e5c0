"""From n-grams that a model wrote to ranked passages.

Source: Bevilacqua et al. (2022), arXiv 2204.10628: a weight that asks how much likelier the query makes an n-gram than
the collection does, and passages that sum the weights of theirs, less for tokens that heavier n-grams have named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from outpace.retrieve.fm_index import FmIndex, Rows

__all__ = ["Found", "NGram", "best_passages", "weigh"]

_SURE = 1 - 1e-12


@dataclass(frozen=True, slots=True)
class NGram:
    """What a model wrote, and how much it says of the query.

    Attributes:
        tokens: ids.
        rows: where it stands in the index.
        weight: max(0, log odds given the query - log odds in the collection).
    """

    tokens: tuple[int, ...]
    rows: Rows
    weight: float


@dataclass(frozen=True, slots=True)
class Found:
    """A passage and why it was found.

    Attributes:
        number: of the passage.
        score: larger is better; only the order means something.
        ngrams: those that stand in it, the heaviest first.
    """

    number: int
    score: float
    ngrams: tuple[NGram, ...]


def weigh(index: FmIndex, written: Sequence[tuple[Sequence[int], Sequence[float]]]) -> list[NGram]:
    """Return the n-grams that texts begin with, one of each, the heaviest first; those of weight 0 are left out.

    Args:
        index: of the collection.
        written: per text its tokens, and the log-probability of each under the model.
    """
    found = dict[tuple[int, ...], NGram]()
    for tokens, log_probs in written:
        rows, total = index.rows, 0.0
        for size, (token, log_prob) in enumerate(zip(tokens, log_probs, strict=True), 1):
            rows, total = index.extend(rows, token), total + log_prob
            if rows[0] == rows[1]:
                break
            given, always = min(math.exp(total), _SURE), min((rows[1] - rows[0]) / index.num_tokens, _SURE)
            weight = total + math.log1p(-always) - math.log(always) - math.log1p(-given)
            if weight > 0:
                found.setdefault(tuple(tokens[:size]), NGram(tuple(tokens[:size]), rows, weight))
    return sorted(found.values(), key=lambda one: (-one.weight, one.tokens))


def best_passages(
    index: FmIndex, ngrams: Sequence[NGram], count: int, power: float = 2.0, overlap: float = 0.8, most: int = 500
) -> list[Found]:
    """Return the passages that n-grams point to, best first; equals: the lower number.

    Args:
        index: of the collection.
        ngrams: the heaviest first, as `weigh` returns them.
        count: passages wanted.
        power: of the weights in the sum.
        overlap: how much an n-gram loses whose tokens heavier ones of the passage have named, 0 to 1.
        most: occurrences of an n-gram that are looked at; frequent ones point nowhere.
    """
    held = dict[int, list[NGram]]()
    for ngram in ngrams:
        for number in index.texts(ngram.rows, most):
            held.setdefault(number, []).append(ngram)
    found = [Found(number, _score(mine, power, overlap), tuple(mine)) for number, mine in held.items()]
    return sorted(found, key=lambda one: (-one.score, one.number))[:count]


def _score(ngrams: Sequence[NGram], power: float, overlap: float) -> float:
    named, total = set[int](), 0.0
    for ngram in ngrams:
        own = set(ngram.tokens)
        total += ngram.weight**power * (1 - overlap + overlap * len(own - named) / len(own))
        named |= own
    return total
