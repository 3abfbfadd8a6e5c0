"""JSON schemas as grammars of the texts on one line that meet them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from outpace.constrain.canvas.grammar import Grammar
from outpace.constrain.canvas.pattern import integers_between, safe_pattern
from outpace.constrain.guidance import parse_schema
from outpace.errors import ConfigError

__all__ = ["read_schema"]

# Characters of a string as they stand in JSON; escapes by number are never needed.
_PLAIN = r'[^"\\\x00-\x1f]'
_CHARACTER = rf'(?:{_PLAIN}|\\["\\/bfnrt])'
_INTEGER = r"-?(?:0|[1-9][0-9]*)"
_NUMBER = rf"{_INTEGER}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_SIMPLE = {"boolean": "true|false", "null": "null", "number": _NUMBER, "integer": _INTEGER}
_DATE = r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"  # days that every month has
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_HEX = "[0-9a-f]"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
}
_NOTES = {
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "$schema", "$id", "$comment", "$defs", "definitions", "x-guidance",
}  # fmt: skip
_KEYWORDS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": set[str](),
    "boolean": set[str](),
    "null": set[str](),
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
_SEPARATORS = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_MOST_ITEMS = 1000

Symbols = tuple[str, ...]


def read_schema(given: str | Mapping[str, Any]) -> Grammar:
    """Return the grammar of a JSON schema's texts, or of a part of them: whatever it derives meets the schema.

    Known: type, enum, const, anyOf, oneOf of alternatives that exclude each other by type, $ref within the schema
    (recursive too); strings with lengths, or a pattern that spares quotes and backslashes, or the formats date, time,
    date-time and uuid; integers with bounds; arrays with items, prefixItems and lengths; objects with properties,
    required and additionalProperties. Properties come in the order given. An object that names properties has no
    others unless additionalProperties says so. Separators are ", " and ": ", unless "x-guidance" says otherwise.

    Raises:
        ConfigError: it is not JSON or not an object, or uses something else.
    """
    return _Reader(parse_schema(given)).grammar()


class _Reader:
    """Builds the rules of one schema."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._rules: dict[str, tuple[Symbols, ...]] = {}
        self._terminals: dict[str, str] = {}
        self._references: dict[str, str] = {}
        style = {**_SEPARATORS, **root.get("x-guidance", {})}
        unknown = sorted(set(style) - set(_SEPARATORS))
        if unknown:
            raise _unknown(f"x-guidance: {unknown[0]}")
        blank = r"[ \t\n\r]*" if style["whitespace_flexible"] else ""
        self._blank = blank
        self._comma = self._terminal(
            blank
            + re.escape(str(style["item_separator"]).strip(" ") if blank else str(style["item_separator"]))
            + blank
        )
        self._colon = self._terminal(
            blank + re.escape(str(style["key_separator"]).strip(" ") if blank else str(style["key_separator"])) + blank
        )

    def grammar(self) -> Grammar:
        """Return the whole grammar."""
        self._rules["start"] = (self._value(self._root),)
        return Grammar("start", self._rules, self._terminals)

    def _terminal(self, pattern: str) -> str:
        name = f"terminal {pattern}"
        self._terminals[name] = pattern
        return name

    def _rule(self, alternatives: Iterable[Symbols]) -> Symbols:
        name = f"rule {len(self._rules)}"
        self._rules[name] = tuple(alternatives)
        return (name,)

    def _mark(self, letter: str) -> str:
        """Return a bracket, with the free space inside of it."""
        escaped = re.escape(letter)
        return self._terminal(escaped + self._blank if letter in "[{" else self._blank + escaped)

    def _value(self, schema: Any) -> Symbols:
        """Return the symbols of one value."""
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            raise _unknown("false" if schema is False else f"a schema that is {type(schema).__name__}")
        keys = set(schema) - _NOTES
        for keyword, read in (
            ("$ref", self._reference), ("const", self._constant), ("enum", self._enumeration), ("anyOf", self._any_of),
            ("oneOf", self._one_of),
        ):  # fmt: skip
            if keyword in keys:
                others = keys - {keyword} - ({"type"} if keyword in ("const", "enum") else set())
                if others:
                    raise _unknown(f"{sorted(others)[0]} beside {keyword}")
                return read(schema)
        kinds = self._kinds(schema, keys)
        for kind in kinds:
            if kind not in _KEYWORDS:
                raise _unknown(f"type: {kind}")
        unknown = keys - {"type"} - set().union(*(_KEYWORDS[kind] for kind in kinds))
        if unknown:
            raise _unknown(sorted(unknown)[0])
        if not keys:
            return self._anything()
        found = [self._typed(kind, schema) for kind in kinds]
        return found[0] if len(found) == 1 else self._rule(found)

    def _kinds(self, schema: Mapping[str, Any], keys: set[str]) -> Sequence[str]:
        given = schema.get("type")
        if given is None:
            guessed = [kind for kind in ("object", "array", "string", "integer") if keys & _KEYWORDS[kind]]
            return guessed[:1] if guessed else list(_KEYWORDS)
        return [given] if isinstance(given, str) else list(given)

    def _typed(self, kind: str, schema: Mapping[str, Any]) -> Symbols:
        if kind == "object":
            return self._object(schema)
        if kind == "array":
            return self._array(schema)
        if kind == "string":
            return (self._terminal(_string(schema)),)
        if kind == "integer":
            return (self._terminal(_integer(schema)),)
        return (self._terminal(_SIMPLE[kind]),)

    def _anything(self) -> Symbols:
        if "any" not in self._rules:
            self._rules["any"] = ()
            simple = self._terminal(f'{_SIMPLE["boolean"]}|null|{_NUMBER}|"{_CHARACTER}*"')
            array = self._bracketed("[", self._repeated(("any",), 0, None), "]")
            pair = (self._terminal(f'"{_CHARACTER}*"'), self._colon, "any")
            self._rules["any"] = ((simple,), array, self._bracketed("{", self._repeated(pair, 0, None), "}"))
        return ("any",)

    def _reference(self, schema: Mapping[str, Any]) -> Symbols:
        path = schema["$ref"]
        if path not in self._references:
            name = f"reference {path}"
            self._references[path] = name
            self._rules[name] = (self._value(self._look_up(path)),)
        return (self._references[path],)

    def _look_up(self, path: Any) -> Any:
        if not isinstance(path, str) or not path.startswith("#"):
            raise _unknown(f"$ref: {path}")
        place: Any = self._root
        for step in path[1:].split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(place, Mapping) or step not in place:
                raise ConfigError(f"The JSON schema refers to {path}, which is not in it.", "Add it under $defs.")
            place = place[step]
        return place

    def _constant(self, schema: Mapping[str, Any]) -> Symbols:
        return (self._terminal(self._written(schema["const"])),)

    def _enumeration(self, schema: Mapping[str, Any]) -> Symbols:
        if not schema["enum"]:
            raise _unknown("an empty enum")
        return (self._terminal("|".join(self._written(value) for value in schema["enum"])),)

    def _written(self, value: Any) -> str:
        item, colon = _SEPARATORS["item_separator"], _SEPARATORS["key_separator"]
        return re.escape(json.dumps(value, ensure_ascii=False, separators=(str(item), str(colon))))

    def _any_of(self, schema: Mapping[str, Any]) -> Symbols:
        return self._rule([self._value(part) for part in schema["anyOf"]])

    def _one_of(self, schema: Mapping[str, Any]) -> Symbols:
        kinds = [part.get("type") if isinstance(part, Mapping) else None for part in schema["oneOf"]]
        clash = {"integer": "number"}
        plain = [clash.get(kind, kind) if isinstance(kind, str) else None for kind in kinds]
        if None in plain or len(set(plain)) < len(plain):
            raise _unknown("oneOf of alternatives that may hold together")
        return self._rule([self._value(part) for part in schema["oneOf"]])

    def _bracketed(self, left: str, inside: Symbols, right: str) -> Symbols:
        return (self._mark(left), *inside, self._mark(right))

    def _repeated(self, item: Symbols, least: int, most: int | None) -> Symbols:
        """Return `least` to `most` items with commas between them."""
        if most == 0:
            return self._rule([()])
        more = (self._comma, *item)
        if most is None:
            name = f"rule {len(self._rules)}"
            self._rules[name] = ((), (*more, name))
            rest: Symbols = (name,)
        else:
            rest = ()
            for _ in range(most - max(least, 1)):
                rest = self._rule([(), (*more, *rest)])
        full = (*item, *more * (max(least, 1) - 1), *rest)
        return full if least else self._rule([(), full])

    def _array(self, schema: Mapping[str, Any]) -> Symbols:
        least, most = _count(schema, "minItems", 0), _count(schema, "maxItems", None)
        fixed = [self._value(part) for part in schema.get("prefixItems", ())]
        items = schema.get("items", True)
        item = None if items is False else self._value(items)
        if not fixed:
            return self._bracketed("[", self._repeated(item, least, most) if item else (), "]")
        if least < len(fixed) or (most is not None and most < len(fixed)):
            # Shorter ones would be allowed; all of `prefixItems` is always written.
            least = max(least, len(fixed))
        if (most is not None and most < least) or (item is None and least > len(fixed)):
            raise _unknown("prefixItems with minItems or maxItems that exclude it")
        inside = [symbol for part in fixed for symbol in (self._comma, *part)][1:]
        if item is not None and most != len(fixed):
            left = None if most is None else most - len(fixed)
            more = self._repeated(item, max(least - len(fixed), 1), left)
            tail: Symbols = (self._comma, *more)
            inside += tail if least > len(fixed) else self._rule([(), tail])
        return self._bracketed("[", tuple(inside), "]")

    def _object(self, schema: Mapping[str, Any]) -> Symbols:
        properties = schema.get("properties", {})
        required = set(schema.get("required", ()))
        extra = schema.get("additionalProperties", not properties)
        missing = sorted(required - set(properties))
        if missing:
            raise ConfigError(
                f"The JSON schema requires {missing[0]}, which its properties do not describe.",
                "Describe every required property.",
            )
        pairs = [
            ((self._terminal(self._written(name)), self._colon, *self._value(part)), name in required)
            for name, part in properties.items()
        ]
        # From the last property on: what may follow if something was written (`later`), and if nothing was (`first`).
        later: Symbols = ()
        first: Symbols = ()
        if extra is not False:
            pair = (self._terminal(_key_not_in(properties)), self._colon, *self._value(extra))
            name = f"rule {len(self._rules)}"
            self._rules[name] = ((), (self._comma, *pair, name))
            later, first = (name,), self._repeated(pair, 0, None)
        for pair, is_required in reversed(pairs):
            begun = (*pair, *later)
            with_comma = (self._comma, *begun)
            first = begun if is_required else self._rule([begun, first])
            later = with_comma if is_required else (*self._rule([(), (self._comma, *pair)]), *later)
        return self._bracketed("{", first, "}")


def _key_not_in(properties: Mapping[str, Any]) -> str:
    if properties:
        raise _unknown("additionalProperties beside properties")
    return f'"{_CHARACTER}*"'


def _string(schema: Mapping[str, Any]) -> str:
    least, most = _count(schema, "minLength", 0), _count(schema, "maxLength", None)
    special = [keyword for keyword in ("pattern", "format") if keyword in schema]
    if len(special) > 1 or (special and {"minLength", "maxLength"} & set(schema)):
        raise _unknown(f"{special[0]} beside another bound on a string")
    if "format" in schema:
        if schema["format"] not in _FORMATS:
            raise _unknown(f"format: {schema['format']}")
        return f'"{_FORMATS[schema["format"]]}"'
    if "pattern" in schema:
        return f'"{safe_pattern(str(schema["pattern"]), _PLAIN)}"'
    return (
        f'"{_CHARACTER}{{{least},{"" if most is None else most}}}"' if least or most is not None else f'"{_CHARACTER}*"'
    )


def _integer(schema: Mapping[str, Any]) -> str:
    lows = [schema["minimum"]] if "minimum" in schema else []
    lows += [schema["exclusiveMinimum"] + 1] if "exclusiveMinimum" in schema else []
    highs = [schema["maximum"]] if "maximum" in schema else []
    highs += [schema["exclusiveMaximum"] - 1] if "exclusiveMaximum" in schema else []
    if not lows and not highs:
        return _INTEGER
    if any(not float(bound).is_integer() for bound in (*lows, *highs)):
        raise _unknown("a bound of an integer that is none")
    low, high = int(max(lows)) if lows else None, int(min(highs)) if highs else None
    if low is not None and high is not None and low > high:
        raise ConfigError(f"The JSON schema asks for an integer from {low} to {high}.", "Exchange the bounds.")
    return integers_between(low, high)


def _count(schema: Mapping[str, Any], keyword: str, default: int | None) -> Any:
    value = schema.get(keyword, default)
    if value is default:
        return value
    if not isinstance(value, int) or not 0 <= value <= _MOST_ITEMS:
        raise _unknown(f"{keyword}: {value}")
    return value


def _unknown(what: str) -> ConfigError:
    return ConfigError(
        f"The JSON schema cannot be used on a canvas: {what} is not known.", "Leave out, or correct, what is named."
    )
