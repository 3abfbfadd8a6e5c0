"""Every error that Outpace raises on purpose.

    OutpaceError            exit status 1: something failed
    ├── ConfigError         exit status 2: an argument, option or setting cannot be used (also a ValueError)
    ├── CapabilityError     exit status 2: the method needs what this model does not offer
    ├── ModelError          exit status 2: a model cannot be found, read or trusted
    ├── NumericalError      exit status 1: the model produced NaN or infinite logits
    ├── NoPages             exit status 1: a pool of cache pages has too few free ones
    ├── PluginError         exit status 1: an entry point is broken or named twice
    └── StorageError        exit status 1: writing to disk failed

Each carries one sentence (`str(error)`) and one actionable sentence (`error.hint`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CapabilityError",
    "ConfigError",
    "ModelError",
    "NoPages",
    "NumericalError",
    "OutpaceError",
    "PluginError",
    "StorageError",
    "check_characters",
    "nearest",
]


class OutpaceError(Exception):
    """Base of all errors raised on purpose; `hint` says what to do next."""

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(OutpaceError, ValueError):
    """An argument, option or setting that cannot be used."""

    exit_status = 2


class CapabilityError(OutpaceError):
    """The method needs something that the model does not offer; the hint names methods that would fit."""

    exit_status = 2


class ModelError(OutpaceError):
    """A model directory or file that cannot be found, read or trusted."""

    exit_status = 2


class NumericalError(OutpaceError):
    """The model produced NaN or infinite logits for a row."""


class NoPages(OutpaceError):
    """A pool has too few free pages for what was asked of it. Nothing has changed: free some, and ask again.

    Attributes:
        needed, free: pages.
    """

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(
            f"{needed} cache pages are needed and {free} are free.", "Serve fewer rows at a time, or give more pages."
        )
        self.needed, self.free = needed, free


class PluginError(OutpaceError):
    """An entry point cannot be loaded, or two packages give the same name."""


class StorageError(OutpaceError):
    """Writing to disk failed; what was stored before is still valid."""


def nearest(name: str, known: Iterable[str], what: str) -> str:
    """Return a hint that names the closest known names, for an unknown `what` called `name`."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(item) for item in close)}?"
    return (
        f"Known {what}{'es' if what.endswith('ch') else 's'}: {', '.join(known)}."
        if known
        else f"No {what} is known here."
    )


def check_characters(text: str, what: str) -> None:
    """Refuse halves of surrogate pairs, which stand in a string (from JSON, or from undecodable bytes) but in no text.

    Args:
        text: the string.
        what: how the message calls it.

    Raises:
        ConfigError: it holds one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{what} holds half of a surrogate pair (U+{ord(text[error.start]):04X} at {error.start}), no character.",
            "Give whole characters; bytes that are not UTF-8 can be decoded with errors='replace'.",
        ) from None
