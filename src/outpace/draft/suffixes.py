"""Suffix arrays over token ids, by prefix doubling in numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["MOST_TOKENS", "suffix_array"]

MOST_TOKENS = 2**31 - 1  # ranks of two halves share one int64
_MOST_IDS = 2**21 - 1  # three ids, each raised by one, share one int64


def suffix_array(tokens: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Return where each suffix of `tokens` starts, in lexicographic order of the suffixes.

    Source: Manber, Myers (1993), Suffix arrays: a new method for on-line string searches, whose rounds double the
    length that is sorted by; as in Larsson, Sadakane (2007), a round sorts only what the rounds before left tied.

    Args:
        tokens: [N] ids from 0 to 2,097,150.

    Raises:
        ValueError: too many tokens, or an id outside that range.
    """
    count = len(tokens)
    if count > MOST_TOKENS or (count and not 0 <= int(tokens.min()) <= int(tokens.max()) < _MOST_IDS):
        raise ValueError("A suffix array takes up to 2**31 - 1 tokens with ids from 0 to 2**21 - 2.")
    ids = np.zeros(count + 2, np.int64)  # the end of the text sorts before every token
    ids[:count] = tokens
    ids[:count] += 1
    key = (ids[:count] << 42) | (ids[1 : count + 1] << 21) | ids[2:]
    order = np.argsort(key)
    is_first = _starts(key[order])  # of a run of suffixes that are equal as far as sorted
    span = 3
    while True:
        rank = np.empty(count, np.int64)
        rank[order] = np.maximum.accumulate(np.where(is_first, np.arange(1, count + 1), 0))
        is_tied = ~is_first
        is_tied[:-1] |= ~is_first[1:]
        tied = np.flatnonzero(is_tied)
        if len(tied) == 0:
            return order
        places = order[tied]
        follows = places + span
        after = np.where(follows < count, rank[np.minimum(follows, count - 1)], 0)
        key = (rank[places] << 32) | after
        inner = np.argsort(key)
        order[tied] = places[inner]
        is_first[tied] |= _starts(key[inner])
        span *= 2


def _starts(key: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return where a sorted key differs from the one before."""
    is_start = np.ones(len(key), np.bool_)
    np.not_equal(key[1:], key[:-1], out=is_start[1:])
    return is_start
