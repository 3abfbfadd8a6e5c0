"""An n-gram model with interpolated modified Kneser-Ney smoothing: the baseline that the zoo has to beat.

Chen and Goodman (1999), "An empirical study of smoothing techniques for language modeling", equations 17 to 20.
Works on any integer symbols below `vocab`: tokens, or bytes. Everything is arrays, no dictionaries: an n-gram is
numbered by the pair (number of its first n - 1 symbols, last symbol), order by order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Order:
    """Statistics of all n-grams of one order.

    Attributes:
        keys: Sorted (context number * vocab + symbol).
        discounted: Count minus discount of each n-gram.
        totals: Sum of the counts that follow each context.
        freed: Mass that the discounts took in each context.
    """

    keys: Ints
    discounted: Floats
    totals: Floats
    freed: Floats


def _discounts(counts: Ints) -> Floats:
    """Discount for a count of 0, 1, 2 and 3 or more, from the counts of counts."""
    ones, twos, threes, fours = (max(int((counts == size).sum()), 1) for size in (1, 2, 3, 4))
    share = ones / (ones + 2 * twos)
    raw = (0.0, 1 - 2 * share * twos / ones, 2 - 3 * share * threes / twos, 3 - 4 * share * fours / threes)
    # Small samples can give values out of range; a discount stays between none and the whole count.
    return np.array([float(np.clip(value, 0.05 * index, 0.95 * index)) for index, value in enumerate(raw)])


class NGram:
    """An interpolated modified Kneser-Ney model.

    Args:
        symbols: The training stream, 1-D.
        order: Longest n-gram (5 predicts from 4 symbols).
        vocab: Number of different symbols.
    """

    def __init__(self, symbols: Ints, order: int, vocab: int) -> None:
        self.vocab = vocab
        self.orders: list[Order] = []
        stream = symbols.astype(np.int64)
        numbers = [np.zeros(len(stream) + 1, dtype=np.int64)]  # Order 0: one empty context.
        tables: list[tuple[Ints, Ints, Ints]] = []
        for size in range(1, order + 1):
            # The n-gram that ends at position p has as context the (n-1)-gram that ends at p - 1.
            context = numbers[-1][: len(stream) - size + 1]
            keys, first, inverse, counts = np.unique(
                context * vocab + stream[size - 1 :], return_index=True, return_inverse=True, return_counts=True
            )
            numbers.append(inverse.astype(np.int64))
            tables.append((keys, first, counts.astype(np.int64)))
        for size in range(1, order + 1):
            keys, _, counts = tables[size - 1]
            if size < order:
                # Lower orders count the different symbols seen before the n-gram, not its occurrences.
                longer_first = tables[size][1]
                suffixes = numbers[size][longer_first + 1]
                counts = np.maximum(np.bincount(suffixes, minlength=len(keys)), 1)
            self.orders.append(self._order(keys, counts))

    def _order(self, keys: Ints, counts: Ints) -> Order:
        discount = _discounts(counts)[np.minimum(counts, 3)]
        context = keys // self.vocab
        totals = np.bincount(context, weights=counts).astype(np.float64)
        freed = np.bincount(context, weights=discount).astype(np.float64)
        return Order(keys, counts - discount, totals, freed)

    def bits(self, symbols: Ints) -> Floats:
        """Bits of each symbol but the first, given all before it: float64 [len(symbols) - 1]."""
        stream = symbols.astype(np.int64)
        number = np.zeros(len(stream), dtype=np.int64)  # The context that ends just before each position, or -1.
        probability = np.full(len(stream), 1.0 / self.vocab)
        for order in self.orders:
            key = number * self.vocab + stream
            place = np.minimum(np.searchsorted(order.keys, key), len(order.keys) - 1)
            is_known = (number >= 0) & (order.keys[place] == key)
            context = np.where((number >= 0) & (number < len(order.totals)), number, 0)
            has_context = (number >= 0) & (number < len(order.totals)) & (order.totals[context] > 0)
            total = np.where(has_context, order.totals[context], 1.0)
            mixed = (np.where(is_known, order.discounted[place], 0.0) + order.freed[context] * probability) / total
            probability = np.where(has_context, mixed, probability)
            ended = np.where(is_known, place, -1)
            number = np.concatenate([np.array([-1]), ended[:-1]])
        bits: Floats = -np.log2(probability[1:])
        return bits
