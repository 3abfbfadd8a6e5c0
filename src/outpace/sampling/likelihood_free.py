"""A temperature below 1 for a law that can only be drawn from: what several draws agree on.

Paper: Shao et al. (2025), arXiv 2510.27688 (CALM), section 6. A value on which n draws agree has a law in proportion to
p ** n; the rest of 1 / T, a power between 0 and 1, is a Bernoulli factory (Mendo, 2019, arXiv 1612.08923).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

from outpace.errors import ConfigError

__all__ = ["sharpened"]

T = TypeVar("T", bound=Hashable)


def sharpened(draws: Sequence[T], chances: Sequence[float], temperature: float) -> tuple[int, bool]:
    """Return which draw is taken, and whether its law is exactly p ** (1 / temperature).

    Where the draws run out first, one of them is taken in proportion to the number of groups of agreeing draws that
    its value forms, the largest group that any value forms (the paper's batch form, which is biased but sharp).

    Args:
        draws: independent ones, in the order in which they are used.
        chances: uniform numbers, at least as many.
        temperature: above 0, at most 1.

    Raises:
        ConfigError: a temperature outside that range, or no draws.
    """
    if not 0 < temperature <= 1 or not draws:
        raise ConfigError(
            f"A law that is only drawn from has no temperature of {temperature:g} over {len(draws)} draws.",
            "Take one above 0 and at most 1; above 1, likelihoods are needed.",
        )
    power = 1 / temperature
    whole = math.floor(power + 1e-9)
    rest = max(power - whole, 0.0) if power - whole > 1e-9 else 0.0
    at = 0
    while at < len(draws):
        first, at = at, at + 1
        while at < len(draws) and at - first < whole and draws[at] == draws[first]:
            at += 1
        if at - first < whole:
            if at == len(draws):
                break
            at += 1  # the draw that disagreed is used up
            continue
        if not rest:
            return first, True
        found, at = _is_kept(draws, chances, at, first, rest)
        if found:
            return first, True
    return _by_groups(draws, chances[-1], whole + bool(rest)), False


def _is_kept(draws: Sequence[T], chances: Sequence[float], at: int, first: int, power: float) -> tuple[bool, int]:
    """Toss a coin of probability p ** power from draws that show the value with probability p; return where it ends."""
    turn = 1
    while at < len(draws):
        at += 1
        if draws[at - 1] == draws[first]:
            return True, at
        if chances[at - 1] * turn < power:
            return False, at
        turn += 1
    return False, at


def _by_groups(draws: Sequence[T], chance: float, size: int) -> int:
    counts = Counter(draws)
    size = min(size, max(counts.values()))
    weights = {value: math.comb(count, size) for value, count in counts.items()}
    left = chance * sum(weights.values())
    for value, weight in weights.items():
        left -= weight
        if left < 0:
            return draws.index(value)
    return draws.index(max(weights, key=weights.__getitem__))
