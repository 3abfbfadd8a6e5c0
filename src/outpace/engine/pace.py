"""How much of prompts is read beside decoding, so that those who are being written for do not wait long."""

from __future__ import annotations

__all__ = ["Pace"]

_LONGER = 1.5  # times a plain step, that reading may add to one
_LEAST, _MOST = 16, 1024  # prompt tokens per step
_WEIGHT = 0.2  # of the last step in the running means


class Pace:
    """Follows what steps cost, and how much more those that read.

    Args:
        tokens: prompt tokens per step, whatever they cost; 0 = as many as keep a step short.
    """

    def __init__(self, tokens: int = 0) -> None:
        self._fixed = tokens
        self._plain_s, self._token_s = 0.0, 0.0  # a step that reads nothing, and what each token adds; 0 = not known

    def budget(self, rows: int) -> int:
        """Return how many prompt tokens to read in the next step, beside so many rows that are written."""
        if self._fixed or not rows:
            return self._fixed or _MOST
        if not self._plain_s or not self._token_s:
            return _LEAST * 4
        return round(min(_MOST, max(_LEAST, _LONGER * self._plain_s / self._token_s)))

    def add(self, seconds: float, rows: int, tokens: int) -> None:
        """Note a step that wrote for so many rows and read so many prompt tokens."""
        if rows and not tokens:
            self._plain_s = _mean(self._plain_s, seconds)
        elif tokens:
            self._token_s = _mean(self._token_s, max(0.0, seconds - (self._plain_s if rows else 0.0)) / tokens)


def _mean(before: float, new: float) -> float:
    return new if not before else before + _WEIGHT * (new - before)
