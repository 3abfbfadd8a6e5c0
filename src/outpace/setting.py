"""Settings that declare themselves once: their range, checked wherever they are made, and their command-line option."""

from __future__ import annotations

import dataclasses
import functools
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from outpace.arguments import path, whole
from outpace.errors import ConfigError, nearest

__all__ = ["Option", "Range", "check", "note_of", "option_of", "ordered", "read_options", "setting"]

_RANGE, _OPTION = "range", "option"


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a setting may have.

    Attributes:
        least, most: the border belongs to the range.
        above, below: it does not.
        among: the names to choose from.
        note: what a value outside the usual ones means, such as "-1 = to the end"; ends the sentence.
        is_finite: infinity lies outside.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    among: tuple[str, ...] = ()
    note: str = ""
    is_finite: bool = False

    def holds(self, value: Any) -> bool:
        """Return whether a value lies in the range."""
        if self.among:
            return value in self.among
        if self.is_finite and not math.isfinite(value):
            return False
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.among:
            return "one of " + ", ".join(self.among)
        if self.least is not None and self.most is not None:
            return f"from {self.least} to {self.most}"
        if self.least is not None and self.below is not None:
            return f"from {self.least} to below {self.below}"
        parts = [f"above {self.above}"] if self.above is not None else []
        parts += [f"{self.least} or more"] if self.least is not None else []
        parts += [f"at most {self.most}"] if self.most is not None else []
        parts += [f"below {self.below}"] if self.below is not None else []
        return " and ".join(parts) or "a finite number"


@dataclass(frozen=True, slots=True)
class Option:
    """How the command line asks for a setting.

    Attributes:
        help: what it does, in a sentence.
        flag: such as "--stop-token"; "" = the field's name with hyphens.
        metavar: what stands for the value in the help; "" = its kind.
        is_shown: the help shows the default, which nothing but the caller can change.
    """

    help: str
    flag: str = ""
    metavar: str = ""
    is_shown: bool = False


def setting(
    default: Any = dataclasses.MISSING,
    *,
    factory: Callable[[], Any] | None = None,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    among: tuple[str, ...] = (),
    note: str = "",
    is_finite: bool = False,
    option: Option | None = None,
) -> Any:
    """Return a dataclass field with a default, the range that `check` holds it to, and its option.

    Args:
        default: the value where none is given.
        factory: makes the default, for values that cannot be shared.
        least, most, above, below, among, note, is_finite: see `Range`.
        option: how the command line asks for it; None = it does not.
    """
    facts = {_RANGE: Range(least, most, above, below, among, note, is_finite), _OPTION: option}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=facts)
    return dataclasses.field(default=default, metadata=facts)


def option_of(field: dataclasses.Field[Any]) -> Option | None:
    """Return the option that a field declares."""
    return field.metadata.get(_OPTION)


def note_of(field: dataclasses.Field[Any]) -> str:
    """Return the note on a setting's values, or ""."""
    allowed = field.metadata.get(_RANGE)
    return allowed.note if allowed is not None else ""


def check(settings: Any) -> None:
    """Hold every field that declares a range to it; each item of a tuple.

    Raises:
        ConfigError: a value outside its range.
    """
    for name, default, allowed in _ranged(settings.__class__):
        value = getattr(settings, name)
        if value is default:  # most are, in every request
            continue
        if not _is_within(value, allowed):
            hint = f"{name} must be {allowed}" + (f"; {allowed.note}." if allowed.note else ".")
            raise ConfigError(f"{name} is {value!r}.", hint)


@functools.cache
def _ranged(kind: Any) -> list[tuple[str, Any, Range]]:
    """Return the fields of a dataclass that declare a range: name, default (MISSING where it breaks it), range."""
    found = []
    for field in dataclasses.fields(kind):
        default, allowed = field.default, field.metadata.get(_RANGE)
        if allowed is not None:
            is_sound = default is not dataclasses.MISSING and _is_within(default, allowed)
            found.append((field.name, default if is_sound else dataclasses.MISSING, allowed))
    return found


def _is_within(value: Any, allowed: Range) -> bool:
    return all(allowed.holds(item) for item in (value if isinstance(value, tuple) else (value,)))


def ordered(settings: Any, low: str, high: str) -> None:
    """Hold two fields to their order.

    Raises:
        ConfigError: the first is above the second.
    """
    least, most = getattr(settings, low), getattr(settings, high)
    if least > most:
        raise ConfigError(f"{low} is {least!r} and {high} {most!r}.", f"{low} must not be above {high}.")


def read_options(kind: Any, given: Mapping[str, Any], noun: str) -> dict[str, Any]:
    """Return the settings of a dataclass by name, from values or command-line strings; None = not given.

    Args:
        kind: the dataclass, which has a `name`.
        given: by name; hyphens stand for underscores.
        noun: what it is, for messages.

    Raises:
        ConfigError: an unknown setting, or a value of the wrong kind.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"options is a {type(given).__name__}.", "Give a dict from option to value.")
    for key, value in given.items():
        if not isinstance(key, str):
            raise ConfigError(f"An option is called {key!r}.", "Give the names of options as text.")
        name = key.replace("-", "_")
        if name not in fields:
            raise ConfigError(f"The {noun} {kind.name!r} has no option {key!r}.", nearest(name, fields, "option"))
        if value is not None:
            values[name] = _convert(kind.name, name, value, fields[name].default)
    return values


def _convert(method: str, name: str, value: Any, default: Any) -> Any:
    """Return a setting's value as the type of its default, read from a command-line string if it is one."""
    try:
        return _read(value, default)
    except (KeyError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        hint = _KINDS.get(type(default), f"Give {type(default).__name__}.")
        shown = reprlib.repr(value).replace("\n", " ")
        raise ConfigError(f"The option {name!r} of {method!r} cannot be {shown}.", hint) from error


_KINDS: dict[type, str] = {
    bool: "Give true or false.",
    int: "Give a whole number (int), such as 8.",
    float: "Give a number (float), such as 0.5.",
    tuple: "Give whole numbers parted by commas, such as 4,2,1.",
    str: "Give text.",
}


def _read(value: Any, default: Any) -> Any:
    """Return the value as the type of the default; anything else raises KeyError, TypeError or ValueError."""
    if isinstance(default, bool):
        return value if isinstance(value, bool) else _SPELLED[str(value).lower()]
    if isinstance(default, int):
        return int(value) if isinstance(value, str) else whole("the option", value)
    if isinstance(default, float):
        number = float(value)
        if math.isnan(number):
            raise ValueError("not a number")
        return number
    if isinstance(default, tuple):
        items = [item for item in value.split(",") if item] if isinstance(value, str) else value
        return tuple(_read(item, 0) for item in items)
    return path("the option", value) if isinstance(default, str) else value


_SPELLED = {"true": True, "false": False, "1": True, "0": False}
