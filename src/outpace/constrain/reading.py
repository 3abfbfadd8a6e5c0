"""The one reading of a regular expression, a JSON schema or a grammar, for texts and for canvases."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, TypedDict

from outpace.constrain.grammar import Grammar, single
from outpace.constrain.schema import read_schema
from outpace.constrain.syntax import read_pattern
from outpace.errors import ConfigError

__all__ = ["Asked", "allows_nothing", "library", "read_asked"]


class Asked(TypedDict, total=False):
    """What a text must look like; exactly one is given.

    Attributes:
        regex: must match the whole text; in Python's syntax (see `outpace.constrain.syntax.read_pattern`).
        json_schema: as a mapping or as JSON (see `outpace.constrain.schema.read_schema`). The text is one line, as in
            {"a": 1, "b": [2, 3]}, unless the schema says otherwise under "x-guidance": {"whitespace_flexible": true}
            frees spaces and line breaks.
        grammar: Lark's syntax, beginning at the rule `start`.
    """

    regex: str | None
    json_schema: str | Mapping[str, Any] | None
    grammar: str | None


def read_asked(asked: Asked) -> tuple[str, Grammar | str]:
    """Return what kind of constraint is given, and its grammar; one in Lark's syntax stays text.

    Raises:
        ConfigError: none is given or several are, or it cannot be read.
    """
    regex, json_schema, grammar = asked.get("regex"), asked.get("json_schema"), asked.get("grammar")
    given = [item for item in (regex, json_schema, grammar) if item is not None]
    if len(given) != 1:
        raise ConfigError(
            f"{len(given) or 'No'} constraints were given.", "Give one regular expression, JSON schema or grammar."
        )
    if regex is not None:
        return "regular expression", single(read_pattern(regex))
    if json_schema is not None:
        return "JSON schema", read_schema(json_schema)
    assert grammar is not None
    return "grammar", grammar


def allows_nothing(kind: str, is_empty_allowed: bool) -> ConfigError:
    """Return the error of a constraint that no text meets, or the empty one alone."""
    extent = "only the empty text" if is_empty_allowed else "no text at all"
    return ConfigError(f"The {kind} allows {extent}.", "Check it for parts that exclude each other.")


def library(name: str, what: str) -> Any:
    """Return an optional package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        hint = "python -m pip install 'outpace[constraints]'"
        raise ConfigError(f"{what} need the package {name}.", hint) from None
