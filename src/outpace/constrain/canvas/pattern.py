"""Regular expressions for parts of JSON: integers within bounds, and patterns of strings."""

from __future__ import annotations

import re

import numpy as np

from outpace.constrain.canvas.automaton import DEAD, Automaton
from outpace.errors import ConfigError

__all__ = ["integers_between", "safe_pattern"]

_ESCAPED = [*range(0x20), ord('"'), ord("\\")]  # bytes that a JSON string cannot hold as they are


def safe_pattern(pattern: str, character: str) -> str:
    """Return a schema's `pattern`, which may match anywhere, as one that matches the whole inside of a JSON string.

    Args:
        pattern: with ^ or $, if any, at its ends.
        character: matches one character that needs no escape.

    Raises:
        ConfigError: it can match characters that JSON escapes, or cannot be read.
    """
    body = pattern.removeprefix("^")
    is_end = body.endswith("$") and not body.endswith("\\$")
    body = body[:-1] if is_end else body
    if re.search(r"(?<!\\)\|", body) and (body != pattern):
        # In ^a|b$ the anchors belong to one side each.
        raise ConfigError(f"The pattern {pattern!r} has both anchors and alternatives.", "Write it as in ^(a|b)$.")
    used = Automaton.of(body, "pattern").next[:, _ESCAPED]
    if (used[np.arange(len(used)) != DEAD] != DEAD).any():
        raise ConfigError(
            f"The pattern {pattern!r} can match characters that JSON escapes.",
            "Name the characters that may stand, as in [a-z ]+.",
        )
    before = "" if pattern.startswith("^") else f"{character}*"
    return f"{before}(?:{body}){'' if is_end else character + '*'}"


def integers_between(low: int | None, high: int | None) -> str:
    """Return an expression for the integers from `low` to `high`; None is no bound."""
    found = []
    if low is None or low < 0:
        # Below zero, what counts is the size: from -high (or 1) to -low.
        found.append(f"-(?:{_sizes(1 if high is None or high >= 0 else -high, None if low is None else -low)})")
    if high is None or high >= 0:
        found.append(_sizes(max(low or 0, 0), high))
    return "|".join(f"(?:{part})" for part in found)


def _sizes(low: int, high: int | None) -> str:
    """Return an expression for the integers from `low` >= 0 on, without leading zeros."""
    if high is None:
        top = 10 ** len(str(low)) - 1
        return f"{_sizes(low, top)}|[1-9][0-9]{{{len(str(low))},}}"
    found, first = [], low
    while first <= high:  # one length after the other
        last = min(high, 10 ** len(str(first)) - 1)
        found.append(_same_length(str(first), str(last)))
        first = last + 1
    return "|".join(found)


def _same_length(low: str, high: str) -> str:
    """Return an expression for the digits between two of the same length."""
    if low == high:
        return low
    if len(low) == 1:
        return f"[{low}-{high}]"
    if low[0] == high[0]:
        return low[0] + f"(?:{_same_length(low[1:], high[1:])})"
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    found = []
    if low[1:] != "0" * rest:
        found.append(low[0] + f"(?:{_same_length(low[1:], '9' * rest)})")
        first += 1
    if high[1:] != "9" * rest:
        found.append(high[0] + f"(?:{_same_length('0' * rest, high[1:])})")
        last -= 1
    if first <= last:
        found.append(f"[{first}-{last}][0-9]{{{rest}}}")
    return "|".join(found)
