"""The cost of a forward by its number of tokens: as it was measured, and as a run learns it from its own forwards."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from outpace.errors import ConfigError

__all__ = ["CostCurve", "SeenCurve", "StepCost", "best_size"]

_KNEE = 0.75  # of the tokens that take as long to compute as a plain forward: so many cost nothing extra
_LEAST_KNEE = 8  # tokens that are taken to cost nothing extra before any slope was seen
_NEARLY_FREE = 0.2  # of the slope, what a token costs before the knee
_LEAST_PROMPT = 16
_SMOOTH = 0.2
_SIZES = (1, 2, 4, 6, 8, 9, 12, 16, 17, 24, 32, 33, 48, 64, 96, 128, 192, 256)  # tokens in a forward
_OTHER = 0.1  # by how much a cost changes before what was worked out from it is worked out again
_LIKE = 0.75  # of a number of rows: as good as that number


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Seconds of a forward by the number of tokens in it.

    Attributes:
        sizes: tokens per forward and row, ascending from 1.
        seconds: median time of such a forward.
        context: cached tokens before it.
        batch: rows.
    """

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    context: int = 256
    batch: int = 1

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.seconds) or not self.sizes or self.sizes[0] != 1:
            raise ConfigError("A cost curve needs one time per size, from size 1 on.", "Measure it with outpace tune.")
        if list(self.sizes) != sorted(set(self.sizes)) or min(self.seconds) <= 0:
            raise ConfigError("A cost curve's sizes ascend and its times are positive.", "Measure it again.")

    def seconds_for(self, size: int) -> float:
        """Return the time of a forward of `size` tokens: linear between what was measured and beyond it."""
        at = min(max(bisect_left(self.sizes, size), 1), len(self.sizes) - 1)
        if len(self.sizes) == 1:
            return self.seconds[0] * max(1, size)
        (low, high), (first, last) = self.sizes[at - 1 : at + 1], self.seconds[at - 1 : at + 1]
        return max(first + (last - first) * (size - low) / (high - low), self.seconds[0])

    def seconds_for_all(self, tokens: int) -> float:
        """Return the time of a forward of `tokens` tokens, all rows together."""
        return self.seconds_for(max(1, round(tokens / self.batch)))

    def ratio(self, size: int) -> float:
        """Return T(size) / T(1)."""
        return self.seconds_for(size) / self.seconds[0]


def best_size(expected: Sequence[float], ratio: Callable[[int], float]) -> int:
    """Return how many drafts bring the most tokens per time, 1 at least.

    Args:
        expected: tokens that a step writes with 0, 1, 2, ... drafts.
        ratio: T(k) / T(1) of a forward of k tokens, as `CostCurve.ratio`.
    """
    return max(range(1, len(expected)), key=lambda size: expected[size] / ratio(size + 1), default=1)


@dataclass
class SeenCurve:
    """A curve that a run corrects by its own forwards, size by size; sizes that were not seen are taken as it has them.

    Attributes:
        given: what is known before, in whatever unit.
        curve: as corrected; the same object until it has changed by a tenth somewhere.
        factors: per entry of sizes, seconds over what the given curve says; 0 = not seen.
    """

    given: CostCurve
    curve: CostCurve = field(init=False)
    factors: list[float] = field(default_factory=lambda: [0.0] * len(_SIZES))
    _told: list[float] = field(init=False)  # per size what the given curve says,
    _held: list[float] = field(init=False)  # and what the corrected one does

    def __post_init__(self) -> None:
        self.curve = self.given
        self._told = [self.given.seconds_for_all(size) for size in _SIZES]
        self._held = self._told

    def rows(self, index: Sequence[int]) -> SeenCurve:
        """Return itself: what forwards cost holds for the whole batch, whichever rows stay."""
        del index
        return self

    def join(self, others: Sequence[SeenCurve]) -> SeenCurve:
        """Return itself: the run that rows join knows more."""
        del others
        return self

    @property
    def unit(self) -> float:
        """Seconds in a unit of the given curve, by the smallest forward seen: fewest drafts, or none; 0 = none seen."""
        return next((factor for factor in self.factors if factor), 0.0)

    def plain(self, tokens: int) -> float:
        """Return the seconds of a forward of so many tokens; 0 where no forward was seen."""
        return self.unit * self.given.seconds_for_all(tokens)

    def add(self, tokens: int, seconds: float) -> None:
        """Count a forward of so many tokens, all rows together."""
        at = _nearest(tokens)
        seen, old = seconds / self.given.seconds_for_all(tokens), self.factors[at]
        self.factors[at] = old + _SMOOTH * (min(seen, 4 * old) - old) if old else seen
        unit, times, least = self.unit, [], 0.0
        for told, factor in zip(self._told, self.factors, strict=True):
            least = max(least, (factor or unit) * told)  # more tokens never take less
            times.append(least)
        scale, held = times[0] / self._held[0], self._held
        if any(abs(new - scale * old) > _OTHER * scale * old for new, old in zip(times, held, strict=True)):
            self.curve, self._held = CostCurve(_SIZES, tuple(times)), times


@lru_cache(maxsize=1024)
def _nearest(tokens: int) -> int:
    return min(range(len(_SIZES)), key=lambda at: abs(_SIZES[at] - tokens))


@dataclass
class StepCost:
    """Seconds of a target forward by the tokens in it, all rows together, learned as the run goes.

    A forward streams the weights, which costs the same for one token and for several, until computing takes longer: up
    to a knee tokens are free, beyond it each costs the same. A plain step tells the level for its number of rows, the
    prompt's forwards tell the slope before the first step, and later forwards correct both. Nothing is run to measure.

    Attributes:
        curve: the stored curve, whose shape then stands in for knee and slope, or None.
        slope: seconds per token beyond the knee; 0 = not seen yet.
        plain: seconds of a plain step by rows.
    """

    curve: CostCurve | None = None
    slope: float = 0.0
    plain: dict[int, float] = field(default_factory=dict)

    def add_prompt(self, tokens: int, seconds: float) -> None:
        """Count a forward of prompt tokens; a short one only streams the weights, and tells nothing."""
        if tokens >= _LEAST_PROMPT:
            self.slope = min(self.slope or seconds / tokens, seconds / tokens)

    def add_plain(self, rows: int, seconds: float) -> None:
        """Count a plain step of so many rows."""
        old = self.plain.get(rows, seconds)
        new = old + _SMOOTH * (min(seconds, 4 * old) - old)
        self.plain[rows] = new
        self.slope *= new / old  # what slows the machine slows both

    def add(self, rows: int, tokens: int, seconds: float) -> None:
        """Count a forward of `tokens` tokens, drafts among them, for so many rows."""
        if not self.knows(rows) or tokens <= rows:
            return
        level = self.plain.setdefault(rows, self._guess(rows))
        if self.curve is not None:  # the curve has the shape, so what differs is the machine's present speed
            expected = self(rows, tokens)
            self.plain[rows] += _SMOOTH * (min(seconds / expected, 4.0) - 1) * level
            return
        if seconds < level:  # more tokens never take less, so the plain step that was timed met something else
            level = self.plain[rows] = seconds
        beyond = tokens - max(rows, self._knee(rows, level))
        if beyond >= 0.5 * rows:
            slope = self._slope(rows, level)
            seen = min(max(seconds - level, slope * beyond / 4), 4 * slope * beyond) / beyond
            self.slope = slope + _SMOOTH * (seen - slope)

    def knows(self, rows: int) -> bool:
        """Return whether a plain step of about so many rows was timed."""
        return rows in self.plain or any(_LIKE * known <= rows <= known / _LIKE for known in self.plain)

    def __call__(self, rows: int, tokens: int) -> float:
        """Return the expected seconds of a forward of `tokens` tokens for so many rows, at least one each."""
        return self.by_tokens(rows)(tokens)

    def by_tokens(self, rows: int) -> Callable[[int], float]:
        """Return the expected seconds for so many rows as a function of the tokens: quicker where many are weighed."""
        level, curve = self.plain.get(rows) or self._guess(rows), self.curve
        if curve is not None:
            plainly = curve.seconds_for_all(rows)
            return lambda tokens: level * max(1.0, curve.seconds_for_all(tokens) / plainly)
        slope, knee = self._slope(rows, level), max(float(rows), self._knee(rows, level))

        def seconds(tokens: int) -> float:
            beyond = tokens - knee
            return level + slope * (_NEARLY_FREE * (tokens - rows) if beyond <= 0 else least + beyond)

        least = _NEARLY_FREE * (knee - rows)
        return seconds

    def _guess(self, rows: int) -> float:
        """Return the level for a number of rows that took no plain step yet: that of the nearest number, or units."""
        if self.plain:
            return self.plain[min(self.plain, key=lambda known: abs(known - rows))]
        return self.curve.seconds_for_all(rows) if self.curve is not None else max(1.0, rows / _LEAST_KNEE)

    def _slope(self, rows: int, level: float) -> float:
        return self.slope or level / max(rows, _LEAST_KNEE)

    def _knee(self, rows: int, level: float) -> float:
        return _KNEE * level / self._slope(rows, level)
