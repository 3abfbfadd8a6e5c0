"""Medians, ratios of pairs with bootstrap intervals, and how much of a text repeats itself."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Ratio", "copied_share", "median_ratio", "ratio_of_pairs", "repeated_share"]

_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Ratio:
    """A median ratio of pairs and its 95% bootstrap interval."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the ratios of pairs, ours over theirs."""
    return statistics.median(own / other for own, other in zip(ours, theirs, strict=True))


def ratio_of_pairs(pairs: Mapping[str, Sequence[float]], seed: int = 0, draws: int = _DRAWS) -> Ratio | None:
    """Return the median of all pairs' ratios; None without any.

    Args:
        pairs: by prompt, one ratio per repetition. Prompts are drawn with replacement, then repetitions of each, so
            that repeating a prompt more often does not feign certainty about others.
        seed: of the draws.
        draws: bootstrap samples.
    """
    groups = [list(values) for values in pairs.values() if values]
    if not groups:
        return None
    everything = [value for values in groups for value in values]
    rng = random.Random(seed)
    medians = sorted(
        statistics.median([rng.choice(values) for values in rng.choices(groups, k=len(groups)) for _ in values])
        for _ in range(draws)
    )
    low, high = medians[int(0.025 * draws)], medians[min(draws - 1, int(0.975 * draws))]
    return Ratio(statistics.median(everything), low, high, len(everything))


def repeated_share(tokens: Sequence[int], size: int = 8) -> float:
    """Return the share of tokens that lie in an n-gram which occurs at least twice in `tokens`."""
    places: dict[tuple[int, ...], list[int]] = {}
    for at in range(len(tokens) - size + 1):
        places.setdefault(tuple(tokens[at : at + size]), []).append(at)
    return _share(len(tokens), [at for found in places.values() if len(found) > 1 for at in found], size)


def copied_share(prompt: Sequence[int], tokens: Sequence[int], size: int = 8) -> float:
    """Return the share of `tokens` that lie in an n-gram which occurs in `prompt`."""
    known = {tuple(prompt[at : at + size]) for at in range(len(prompt) - size + 1)}
    starts = [at for at in range(len(tokens) - size + 1) if tuple(tokens[at : at + size]) in known]
    return _share(len(tokens), starts, size)


def _share(total: int, starts: Sequence[int], size: int) -> float:
    covered = {place for at in starts for place in range(at, at + size)}
    return len(covered) / total if total else 0.0
