"""Arguments as callers spell them: taken where the meaning is plain, told in one sentence where it is not.

A count may be an int, a NumPy or torch scalar, or a float without a fraction; None stands for an argument that is not
given. Numbers in quotes, and truth values in place of numbers, are refused.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any

from outpace.errors import ConfigError

_BITS = 64  # of the largest count or seed

__all__ = ["flag", "given", "ids", "number", "path", "refused", "settle", "some_ids", "whole"]


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are not None."""
    return {name: value for name, value in arguments.items() if value is not None}


def settle(made: Any) -> None:
    """Bring the fields of a frozen dataclass to the kind of their defaults; None becomes the default itself.

    Raises:
        ConfigError: a count, number or truth value is something else.
    """
    for field in _fields(made.__class__):
        value, default = getattr(made, field.name), field.default
        if value is default:  # most are, in every request
            continue
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value is None and default is not None:
            object.__setattr__(made, field.name, default)
        elif type(default) in _READERS:
            object.__setattr__(made, field.name, _READERS[type(default)](field.name, value))


@functools.cache
def _fields(kind: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind)


def whole(name: str, value: Any) -> int:
    """Return a count as an int."""
    value = _scalar(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, (bool, float)):
        try:
            found = operator.index(value)
            if found.bit_length() <= _BITS:
                return found
        except TypeError:
            pass
    raise refused(name, value, "a whole number")


def number(name: str, value: Any) -> float:
    """Return a number as a float."""
    value = _scalar(value)
    if not isinstance(value, (bool, str, bytes)):
        try:
            return float(value)
        except OverflowError:
            return float("inf")
        except (TypeError, ValueError, RuntimeError):
            pass
    raise refused(name, value, "a number")


def flag(name: str, value: Any) -> bool:
    """Return a truth value; 0 and 1 are two."""
    value = _scalar(value)
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise refused(name, value, "True or False")


def ids(name: str, value: Any) -> list[int]:
    """Return token ids from a sequence, an array or a tensor of one dimension."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, (Sequence, range)):
        raise refused(name, value, "a list of token ids")
    return [whole(f"a token of {name}", token) for token in value]


def some_ids(name: str, value: Any) -> list[int]:
    """Return token ids; a lone id is a list of one."""
    is_one = isinstance(_scalar(value), (int, float)) and not isinstance(value, bool)
    return [whole(name, value)] if is_one else ids(name, value)


def path(name: str, value: Any) -> str:
    """Return a name or path as text."""
    if isinstance(value, (str, os.PathLike)) and isinstance(found := os.fspath(value), str):
        return found
    raise refused(name, value, "a name or a path")


def refused(name: str, value: Any, wanted: str) -> ConfigError:
    """Return the error that names an argument, what was given, and what belongs there."""
    shown = repr(value)
    shown = f"{shown}, " if len(shown) <= 40 and "\n" not in shown else ""
    kind = type(value).__name__
    return ConfigError(f"{name} is {shown}of type {kind}, where {wanted} belongs.", f"Give {wanted}.")


def _scalar(value: Any) -> Any:
    """Return the Python number in a NumPy or torch scalar; anything else as it is."""
    if hasattr(value, "item") and hasattr(value, "ndim") and value.ndim == 0:
        return value.item()
    return value


_READERS: dict[type, Any] = {bool: flag, int: whole, float: number}
