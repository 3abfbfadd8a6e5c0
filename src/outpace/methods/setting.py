"""Settings that declare their range once: checked wherever a method is made, told in one sentence."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from outpace.errors import ConfigError

__all__ = ["Range", "check", "ordered", "setting"]

_KEY = "range"


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a setting may have.

    Attributes:
        least, most: the border belongs to the range.
        above, below: it does not.
        among: the names to choose from.
        note: what a value outside the usual ones means, such as "-1 = to the end"; ends the sentence.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    among: tuple[str, ...] = ()
    note: str = ""

    def holds(self, value: Any) -> bool:
        """Return whether a value lies in the range."""
        if self.among:
            return value in self.among
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
        return " and ".join(parts)


def setting(
    default: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    among: tuple[str, ...] = (),
    note: str = "",
) -> Any:
    """Return a dataclass field with a default and the range that `check` holds it to; see `Range`."""
    return dataclasses.field(default=default, metadata={_KEY: Range(least, most, above, below, among, note)})


def check(settings: Any) -> None:
    """Hold every field that declares a range to it; each item of a tuple.

    Raises:
        ConfigError: a value outside its range.
    """
    for field in dataclasses.fields(settings):
        allowed, value = field.metadata.get(_KEY), getattr(settings, field.name)
        if allowed is None:
            continue
        if not all(allowed.holds(item) for item in (value if isinstance(value, tuple) else (value,))):
            hint = f"{field.name} must be {allowed}" + (f"; {allowed.note}." if allowed.note else ".")
            raise ConfigError(f"{field.name} is {value!r}.", hint)


def ordered(settings: Any, low: str, high: str) -> None:
    """Hold two fields to their order.

    Raises:
        ConfigError: the first is above the second.
    """
    least, most = getattr(settings, low), getattr(settings, high)
    if least > most:
        raise ConfigError(f"{low} is {least!r} and {high} {most!r}.", f"{low} must not be above {high}.")
