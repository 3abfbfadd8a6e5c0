"""JSON schemas as grammars of the texts on one line that meet them; the one reading for text models and canvases.

A schema is a list of demands that hold together: a reference, `allOf` and what stands beside them add demands,
`anyOf` and `oneOf` branch. What is left of a branch is sorted by the type of the value, and each type's keywords are
met by an expression (strings, numbers) or a rule (arrays, objects).
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import unquote, urljoin

from outpace.constrain import json_text
from outpace.constrain.expression import EMPTY, NOTHING, Node, any_of, chain, choice, repeat, word
from outpace.constrain.grammar import Grammar, Terminal
from outpace.constrain.machine import Budget, is_empty
from outpace.constrain.syntax import search_pattern
from outpace.errors import ConfigError

__all__ = ["parse_schema", "read_schema"]

_NOTES = {
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$schema", "$id",
    "id", "$comment", "$anchor", "$defs", "definitions", "x-guidance", "contentMediaType", "contentEncoding",
}  # fmt: skip
_KEYWORDS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "array": {"items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"},
    "object": {
        "properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties",
    },
}  # fmt: skip
_BRANCHING = {"$ref", "allOf", "anyOf", "oneOf"}
_KNOWN = set[str]().union({"type", "enum", "const"}, _BRANCHING, *_KEYWORDS.values())
_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_STYLE = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False, "coerce_one_of": False}
_MOST_ITEMS, _MOST_LENGTH, _MOST_RULES, _MOST_BRANCHES = 1_000, 50_000, 20_000, 500

Symbols = tuple[str, ...]
_Demands = tuple[Any, ...]  # schemas that hold together


def parse_schema(given: str | Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return a JSON schema that was given as a mapping or as JSON.

    Raises:
        ConfigError: it is not JSON, or not an object.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"The JSON schema is not JSON: {error}.", "Check its commas and quotes.") from None
    if not isinstance(given, Mapping):
        raise ConfigError("The JSON schema is not an object.", 'Write it as in {"type": "object"}.')
    return given


def read_schema(given: str | Mapping[str, Any]) -> Grammar:
    """Return the grammar of a JSON schema's texts.

    Every text is JSON whose value meets the schema. Every value that meets it has a text, that of
    `json.dumps(value, ensure_ascii=False)`, with these exceptions: the properties that the schema names come first, in
    its order; numbers with bounds or `multipleOf` are written without exponents, and integers without a point; formats
    are met in ASCII; in a `pattern`, `$` is the end of the string, and the rest is read as Python's `re` reads it.
    Separators are ", " and ": ", unless "x-guidance" says otherwise.

    Known are all keywords of draft 2020-12 (and the bounds and lists of items of earlier ones) but: not, if,
    contains, propertyNames, the dependent and the unevaluated ones, `uniqueItems: true`, dynamic references,
    `oneOf` of alternatives that may hold together, and `minProperties` and `maxProperties` beside named properties.

    Raises:
        ConfigError: it is not JSON or not an object, uses something else, or allows no text.
    """
    schema = parse_schema(given)
    try:
        return _read(_as_json(schema))
    except RecursionError:
        raise ConfigError("The JSON schema is nested too deeply.", "Use $ref for what repeats.") from None


def _as_json(schema: Mapping[str, Any]) -> str:
    try:
        return json.dumps(schema)
    except (TypeError, ValueError):
        raise ConfigError("The JSON schema holds something that is not JSON.", "Write it as JSON.") from None


@functools.lru_cache(maxsize=32)
def _read(written: str) -> Grammar:
    return _Reader(json.loads(written)).grammar()


class _Reader:
    """Builds the rules of one schema."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._rules: dict[str, tuple[Symbols, ...]] = {}
        self._terminals: dict[Terminal, str] = {}
        self._values: dict[tuple[int, ...], Symbols] = {}
        self._made: list[Any] = []  # keeps schemas alive whose identity is a key
        self._own: dict[int, dict[str, Any]] = {}  # of each schema, what is left without references and branches
        self._exclusive: list[Symbols] = []  # what must derive nothing
        self._places: dict[str, Any] = {}
        self._homes: dict[int, tuple[str, Any]] = {}
        self._find(root, "", root)
        own = root.get("x-guidance", {})
        style = {**_STYLE, **(own if isinstance(own, Mapping) else {"x-guidance": own})}
        unknown = sorted(set(style) - set(_STYLE))
        if unknown:
            raise _unknown(f"x-guidance: {unknown[0]}")
        self._is_any = bool(style["coerce_one_of"])
        draft = re.search("draft-0?([3-7])", str(root.get("$schema", "")))
        self._is_alone = draft is not None  # in older drafts a reference replaces what stands beside it
        self._blank = repeat(any_of(" \t\n\r"), 0, None) if style["whitespace_flexible"] else EMPTY
        self._style = (str(style["item_separator"]), str(style["key_separator"]))
        comma, colon = (text.strip() if style["whitespace_flexible"] else text for text in self._style)
        if (comma.strip(), colon.strip()) != (",", ":"):
            raise _unknown(f"x-guidance: separators {comma!r} and {colon!r}")
        self._comma = self._terminal(chain((self._blank, word(comma), self._blank)))
        self._colon = self._terminal(chain((self._blank, word(colon), self._blank)))

    def grammar(self) -> Grammar:
        """Return the whole grammar."""
        self._rules["start"] = (self._value((self._root,)),)
        whole = Grammar("start", self._rules, {name: terminal for terminal, name in self._terminals.items()})
        texts = whole.productive(_is_empty)
        # Only now is it known what derives a text, and `oneOf` must not hold twice.
        for symbols in self._exclusive:
            if texts.issuperset(symbols):
                raise _unknown("oneOf of alternatives that may hold together")
        if "start" not in texts:
            if "start" in whole.productive(_is_empty, is_endless=True):
                raise ConfigError(
                    "No text of the JSON schema comes to an end: it requires itself.",
                    "Give what recurs a way out, such as null or a property that may be left out.",
                )
            raise ConfigError("The JSON schema allows no text at all.", "Check it for parts that exclude each other.")
        return whole.without(texts)

    def _find(self, place: Any, base: str, home: Any) -> None:
        """Note what references can name, and the document that each part belongs to."""
        if isinstance(place, Mapping):
            # An identity opens a document of its own: references within it are meant relative to it.
            name = place.get("$id", place.get("id"))
            if isinstance(name, str) and not isinstance(place.get("$ref"), str):
                full = urljoin(base, name)
                if not name.startswith("#"):
                    base, home = full.removesuffix("#"), place
                self._places.setdefault(full.removesuffix("#"), place)
            if isinstance(place.get("$anchor"), str):
                self._places.setdefault(f"{base}#{place['$anchor']}", place)
            self._homes[id(place)] = (base, home)
        parts = place if isinstance(place, list) else []
        if isinstance(place, Mapping):
            parts = [part for key, part in place.items() if key not in ("enum", "const", "default", "examples")]
        for part in parts:
            self._find(part, base, home)

    # Rules and terminals.

    def _terminal(self, *all_of: Node, none_of: Sequence[Node] = ()) -> str:
        terminal = Terminal(tuple(dict.fromkeys(all_of)), tuple(dict.fromkeys(none_of)))
        return self._terminals.setdefault(terminal, f"terminal {len(self._terminals)}")

    def _rule(self, alternatives: Iterable[Symbols]) -> Symbols:
        found = tuple(dict.fromkeys(alternatives))
        if len(found) == 1:
            return found[0]
        name = self._new()
        self._rules[name] = found
        return (name,)

    def _new(self) -> str:
        """Return the name of a new rule."""
        if len(self._rules) >= _MOST_RULES:
            raise ConfigError(f"The JSON schema needs more than {_MOST_RULES} rules.", "Lower its counts of items.")
        name = f"rule {len(self._rules)}"
        self._rules[name] = ()
        return name

    # Schemas.

    def _value(self, demands: _Demands) -> Symbols:
        """Return the symbols of the values that meet some schemas."""
        demands = tuple({id(each): each for each in demands if each is not True and each != {}}.values())
        key = tuple(sorted(map(id, demands)))
        if key not in self._values:
            # The name is known before the rule is made, so that a schema may refer to itself.
            self._made += demands
            name = self._new()
            self._values[key] = (name,)
            found = [way for flat in self._branches(demands) for way in self._ways(flat)]
            self._rules[name] = tuple(dict.fromkeys(found))
        return self._values[key]

    def _branches(self, demands: _Demands, above: tuple[int, ...] = ()) -> Iterator[_Demands]:
        """Yield the ways to meet some schemas, each as plain ones (no references, no branches) that hold together."""
        count = 0
        for parts in itertools.product(*(list(self._plain(each, above)) for each in demands)):
            count += 1
            if count > _MOST_BRANCHES:
                raise _unknown(f"more than {_MOST_BRANCHES} combinations of alternatives")
            yield tuple(schema for part in parts for schema in part)

    def _plain(self, schema: Any, above: tuple[int, ...]) -> Iterator[_Demands]:
        """Yield the ways to meet one schema, each as plain schemas."""
        if schema is False:
            return
        if schema is True:
            yield ()
            return
        if not isinstance(schema, Mapping):
            raise _unknown(f"a schema that is {type(schema).__name__}")
        if id(schema) in above:
            raise ConfigError(
                f"The JSON schema refers in a circle: {schema.get('$ref', 'a part')} is what it stands for.",
                "Let it go through an array or a property.",
            )
        # 1) What holds beside the schema's own keywords: its reference, and all of `allOf`.
        above = (*above, id(schema))
        if "$ref" in schema and self._is_alone:
            yield from self._branches((self._look_up(schema),), above)
            return
        unknown = sorted(key for key in set(schema) - _NOTES - _KNOWN if not str(key).startswith("x-"))
        if unknown:
            raise _unknown(unknown[0])
        more: list[Any] = [self._look_up(schema)] if "$ref" in schema else []
        more += _parts(schema, "allOf") if "allOf" in schema else []
        own = self._own.setdefault(
            id(schema), {key: value for key, value in schema.items() if key in _KNOWN - _BRANCHING}
        )
        # 2) What branches. Alternatives of `oneOf` exclude each other under all else that the schema demands.
        choices = []
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                parts = _parts(schema, keyword)
                choices.append([(part,) for part in parts])
                if keyword == "oneOf" and not self._is_any:
                    self._exclude(parts, (own, *more))
        # 3) Every combination of one way through each.
        base = list(self._branches(tuple(more), above)) if more else [()]
        for chosen in itertools.product(*choices):
            for ways in itertools.product(base, *(list(self._branches(each, above)) for each in chosen)):
                yield ((own,) if own else ()) + tuple(part for way in ways for part in way)

    def _exclude(self, parts: Sequence[Any], beside: _Demands) -> None:
        """Note that no two of some alternatives may hold together."""
        for one, other in itertools.combinations(parts, 2):
            pair = tuple({id(each): each for each in (one, other, *beside)}.values())
            self._made += pair
            self._exclusive.append(self._value(pair))

    def _look_up(self, schema: Mapping[str, Any]) -> Any:
        path = schema["$ref"]
        if not isinstance(path, str):
            raise _unknown(f"$ref: {path}")
        base, home = self._homes.get(id(schema), ("", self._root))
        full = urljoin(base, path)
        document, _, pointer = full.partition("#")
        if full.removesuffix("#") in self._places and full not in ("", base):
            return self._places[full.removesuffix("#")]
        if document == base:
            place: Any = home
        elif document in self._places:
            place = self._places[document]
        else:
            raise _unknown(f"$ref: {path}")
        if pointer and not pointer.startswith("/"):
            raise _missing(path)
        for step in unquote(pointer).split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(place, list) and step.isdigit() and int(step) < len(place):
                place = place[int(step)]
            elif isinstance(place, Mapping) and step in place:
                place = place[step]
            else:
                raise _missing(path)
        return place

    # Values.

    def _ways(self, flat: _Demands) -> Iterator[Symbols]:
        """Yield the alternatives for values that meet some plain schemas."""
        types = set(_TYPES)
        for schema in flat:
            types &= _types(schema) if "type" in schema else types
        # Listed values are few: each is tested against all other demands, and what is left is written out.
        listed = next((schema for schema in flat if "enum" in schema or "const" in schema), None)
        if listed is not None:
            own = {key: value for key, value in listed.items() if key not in ("enum", "const")}
            others = [own, *(schema for schema in flat if schema is not listed)]
            values = [value for value in _listed(listed) if all(self._meets_plain(value, each) for each in others)]
            if values:
                yield (self._terminal(choice(word(self._written(value)) for value in values)),)
            return
        if "number" in types:  # which takes in the integers
            types.discard("integer")
        simple = {"null": word("null"), "boolean": choice((word("true"), word("false")))}
        for kind in _TYPES:
            if kind not in types:
                continue
            if kind in simple:
                yield (self._terminal(simple[kind]),)
            elif kind in ("integer", "number"):
                yield (self._number(kind, flat),)
            elif kind == "string":
                yield (self._string(flat),)
            else:
                found = self._array(flat) if kind == "array" else self._object(flat)
                if found is not None:
                    yield found

    def _written(self, value: Any) -> str:
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=self._style)
        except ValueError:
            raise _unknown(f"the value {value}") from None

    def _number(self, kind: str, flat: _Demands) -> str:
        nodes: list[Node] = [json_text.INTEGER if kind == "integer" else json_text.NUMBER]
        for schema in flat:
            for sign, bound, is_strict in _bounds(schema):
                nodes.append((json_text.above if sign > 0 else json_text.below)(bound, is_strict))
            if "multipleOf" in schema:
                nodes += _multiples(_decimal(schema, "multipleOf"))
        return self._terminal(*nodes)

    def _string(self, flat: _Demands) -> str:
        nodes: list[Node] = []
        least, most = _between(flat, "minLength", "maxLength", _MOST_LENGTH)
        for schema in flat:
            if "pattern" in schema:
                nodes.append(json_text.quoted(search_pattern(_text(schema, "pattern"))))
            if "format" in schema:
                nodes.append(json_text.format_node(_format(schema)))
        if most is not None and least > most:
            return self._terminal(choice(()))
        if least or most is not None or not nodes:
            nodes.insert(0, json_text.of_length(least, most))
        return self._terminal(*nodes)

    def _bracketed(self, left: str, inside: Symbols, right: str) -> Symbols:
        """Return what stands between brackets, with the free space inside of them."""
        begin, end = self._terminal(chain((word(left), self._blank))), self._terminal(chain((self._blank, word(right))))
        return (begin, *inside, end)

    def _repeated(self, item: Symbols, least: int, most: int | None) -> Symbols:
        """Return `least` to `most` items with commas between them."""
        if most == 0:
            return ()
        more = (self._comma, *item)
        rest: Symbols = ()
        if most is None:
            name = self._new()
            self._rules[name] = ((), (*more, name))
            rest = (name,)
        else:
            for _ in range(most - max(least, 1)):
                rest = self._rule([(), (*more, *rest)])
        full = (*item, *more * (max(least, 1) - 1), *rest)
        return full if least else self._rule([(), full])

    def _array(self, flat: _Demands) -> Symbols | None:
        least, most = _between(flat, "minItems", "maxItems", _MOST_ITEMS)
        for schema in flat:
            if schema.get("uniqueItems", False) is not False and (most is None or most > 1):
                raise _unknown("uniqueItems")
        lists = [_items(schema) for schema in flat]
        # 1) Items with schemas of their own stand at fixed places; behind them all items are alike.
        fixed = max((len(first) for first, _ in lists), default=0)

        def item(at: int) -> _Demands:
            return tuple(first[at] if at < len(first) else rest for first, rest in lists)

        if False in item(fixed):
            most = fixed if most is None else min(most, fixed)
        if most is not None and least > most:
            return None
        # 2) From the right: first the alike ones, then one fixed item after the other, each free where enough stand.
        fixed = fixed if most is None else min(fixed, most)
        inside = self._repeated(self._value(item(fixed)), max(least - fixed, 1), None if most is None else most - fixed)
        if most == fixed:
            inside = ()
        elif fixed:
            inside = (self._comma, *inside)
        if most != fixed and least <= fixed:
            inside = self._rule([(), inside])
        for at in reversed(range(fixed)):
            inside = ((self._comma,) if at else ()) + self._value(item(at)) + inside
            if least <= at:
                inside = self._rule([(), inside])
        return self._bracketed("[", inside, "]")

    def _object(self, flat: _Demands) -> Symbols | None:
        # 1) Named properties come first and in the schema's order; the others follow, in any number.
        objects = [_Object(schema) for schema in flat if set(schema) & _KEYWORDS["object"]]
        required = list(dict.fromkeys(name for each in objects for name in each.required))
        names = list(dict.fromkeys([*(name for each in objects for name in each.properties), *required]))
        least, most = _between(flat, "minProperties", "maxProperties", _MOST_ITEMS)
        if names and ((most is not None and most < len(names)) or least > len(required)):
            raise _unknown("minProperties or maxProperties beside named properties")
        pairs = [
            ((self._terminal(_key(name)), self._colon, *self._value(self._of(objects, name))), name in required)
            for name in names
        ]
        others = list(self._others(objects, names))
        if names and others and most is not None:
            raise _unknown("minProperties or maxProperties beside named properties")
        # 2) From the last property on: what may follow if something was written (`later`), or nothing yet (`first`).
        later: Symbols = ()
        first: Symbols = ()
        if others:
            pair = self._rule(others)
            first = self._repeated(pair, 0 if names else least, None if names else most)
            name = self._new()
            self._rules[name] = ((), (self._comma, *pair, name))
            later = (name,)
        elif least > len(required):
            return None
        for pair, is_required in reversed(pairs):
            begun = (*pair, *later)
            first = begun if is_required else self._rule([begun, first])
            comma = (self._comma, *pair)
            later = (*comma, *later) if is_required else (*self._rule([(), comma]), *later)
        return self._bracketed("{", first, "}")

    def _of(self, objects: Sequence[_Object], name: str) -> _Demands:
        """Return what some objects demand of one property."""
        return tuple(demand for each in objects for demand in each.of(name))

    def _others(self, objects: Sequence[_Object], names: Sequence[str]) -> Iterator[Symbols]:
        """Yield the pairs of properties without a name, by the patterns that their keys match."""
        patterns = list(dict.fromkeys(pattern for each in objects for pattern in each.patterns))
        if len(patterns) > 6:
            raise _unknown("more than six patternProperties")
        # A key is told by which patterns it matches: one terminal for each set of them, so that no two overlap.
        own = [choice(map(_key, names))] if names else []
        keys = {pattern: json_text.quoted(search_pattern(pattern)) for pattern in patterns}
        for chosen in itertools.product((True, False), repeat=len(patterns)):
            matched = [pattern for pattern, is_matched in zip(patterns, chosen, strict=True) if is_matched]
            demands = tuple(
                demand for each in objects for demand in each.matched([p for p in matched if p in each.patterns])
            )
            if False in demands:
                continue
            missed = [keys[pattern] for pattern in patterns if pattern not in matched]
            inside = [keys[pattern] for pattern in matched] or [json_text.STRING]
            yield (self._terminal(*inside, none_of=[*own, *missed]), self._colon, *self._value(demands))

    # Values that are given.

    def _meets(self, value: Any, schema: Any) -> bool:
        """Return whether a value meets a schema."""
        if isinstance(schema, bool):
            return schema
        return any(all(self._meets_plain(value, part) for part in flat) for flat in self._branches((schema,)))

    def _meets_plain(self, value: Any, schema: Mapping[str, Any]) -> bool:
        kind = _kind(value)
        if "type" in schema and kind not in _types(schema):
            return False
        if ("enum" in schema or "const" in schema) and not any(_is_same(value, each) for each in _listed(schema)):
            return False
        if kind == "string":
            return self._meets_string(value, schema)
        if kind in ("integer", "number"):
            return _meets_number(value, schema)
        if kind == "array":
            first, rest = _items(schema)
            least, most = _between((schema,), "minItems", "maxItems", _MOST_ITEMS)
            if schema.get("uniqueItems") and any(_is_same(*pair) for pair in itertools.combinations(value, 2)):
                return False
            demands = [first[at] if at < len(first) else rest for at in range(len(value))]
            is_long = least <= len(value) and (most is None or len(value) <= most)
            return is_long and all(self._meets(*pair) for pair in zip(value, demands, strict=True))
        if kind == "object":
            own = _Object(schema)
            least, most = _between((schema,), "minProperties", "maxProperties", _MOST_ITEMS)
            if set(own.required) - set(value) or len(value) < least or (most is not None and len(value) > most):
                return False
            return all(self._meets(value[name], demand) for name in value for demand in own.of(name))
        return True

    def _meets_string(self, value: str, schema: Mapping[str, Any]) -> bool:
        least, most = _between((schema,), "minLength", "maxLength", _MOST_LENGTH)
        name = _format(schema) if "format" in schema else None
        return (
            least <= len(value) and (most is None or len(value) <= most)
            and ("pattern" not in schema or re.search(_text(schema, "pattern"), value) is not None)
            and (name is None or re.fullmatch(json_text.FORMATS[name], value) is not None)
        )  # fmt: skip


class _Object:
    """What one plain schema says of the properties of an object."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.properties = _mapping(schema, "properties")
        self.patterns = _mapping(schema, "patternProperties")
        required = schema.get("required", [])
        if isinstance(required, bool):
            required = []  # draft 3 says it of the property itself
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise _unknown(f"required: {required}")
        self.required: list[str] = required
        self._rest = schema.get("additionalProperties", True)

    def of(self, name: str) -> list[Any]:
        """Return what is demanded of one property."""
        matched = [pattern for pattern in self.patterns if re.search(pattern, name)]
        if name in self.properties:
            return [self.properties[name], *(self.patterns[pattern] for pattern in matched)]
        return self.matched(matched)

    def matched(self, patterns: Sequence[str]) -> list[Any]:
        """Return what is demanded of a property without a name whose key matches some patterns."""
        return [self.patterns[pattern] for pattern in patterns] or [self._rest]


def _key(name: str) -> Node:
    return word(json.dumps(name, ensure_ascii=False))


def _parts(schema: Mapping[str, Any], keyword: str) -> list[Any]:
    parts = schema[keyword]
    if not isinstance(parts, list) or not parts:
        raise _unknown(f"{keyword} that is no list of schemas")
    return parts


def _types(schema: Mapping[str, Any]) -> set[str]:
    given = schema["type"]
    found = {str(kind) for kind in given} if isinstance(given, list) else {str(given)}
    for kind in sorted(found):
        if kind not in _TYPES:
            raise _unknown(f"type: {kind}")
    return found | {"integer"} if "number" in found else found


def _listed(schema: Mapping[str, Any]) -> list[Any]:
    """Return the values that enum and const leave."""
    if "enum" not in schema:
        return [schema["const"]]
    if not isinstance(schema["enum"], list):
        raise _unknown("enum that is no list")
    return [value for value in schema["enum"] if "const" not in schema or _is_same(value, schema["const"])]


def _items(schema: Mapping[str, Any]) -> tuple[list[Any], Any]:
    """Return the schemas of the first items, and that of the others."""
    items, first = schema.get("items", True), schema.get("prefixItems", [])
    if isinstance(items, list):
        return items, schema.get("additionalItems", True)
    if not isinstance(first, list):
        raise _unknown("prefixItems that is no list")
    return first, items


def _mapping(schema: Mapping[str, Any], keyword: str) -> Mapping[str, Any]:
    found = schema.get(keyword, {})
    if not isinstance(found, Mapping):
        raise _unknown(f"{keyword} that is no object")
    return found


def _between(flat: _Demands, low: str, high: str, limit: int) -> tuple[int, int | None]:
    """Return the largest lower and the smallest upper bound of a count."""
    lows = [_count(schema, low, limit) for schema in flat if low in schema]
    highs = [_count(schema, high, limit) for schema in flat if high in schema]
    return max(lows, default=0), min(highs, default=None)


def _count(schema: Mapping[str, Any], keyword: str, limit: int) -> int:
    value = schema[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= limit or value != int(value):
        raise _unknown(f"{keyword}: {value}")
    return int(value)


def _decimal(schema: Mapping[str, Any], keyword: str) -> Decimal:
    value = schema[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float) or not Decimal(value).is_finite():
        raise _unknown(f"{keyword}: {value}")
    return Decimal(str(value))


def _bounds(schema: Mapping[str, Any]) -> Iterator[tuple[int, Decimal, bool]]:
    """Yield the bounds of a number: 1 for a lower and -1 for an upper one, its value, and whether it is exclusive."""
    for keyword, strict, sign in (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1)):
        is_flag = isinstance(schema.get(strict), bool)  # of the other one, in draft 4
        if keyword in schema:
            yield sign, _decimal(schema, keyword), bool(is_flag and schema[strict])
        if strict in schema and not is_flag:
            yield sign, _decimal(schema, strict), True


def _text(schema: Mapping[str, Any], keyword: str) -> str:
    if not isinstance(schema[keyword], str):
        raise _unknown(f"{keyword}: {schema[keyword]}")
    return str(schema[keyword])


def _format(schema: Mapping[str, Any]) -> str:
    name = _text(schema, "format")
    if name not in json_text.FORMATS:
        raise _unknown(f"format: {name}")
    return name


def _multiples(divisor: Decimal) -> list[Node]:
    """Return expressions of a divisor's multiples."""
    places = max(0, -int(divisor.normalize().as_tuple().exponent))
    if divisor > 0 and divisor == divisor.scaleb(places).scaleb(-places) and divisor.scaleb(places) == 1:
        return [json_text.digits_after(places)]
    found = json_text.multiples(int(divisor)) if divisor > 0 and divisor == int(divisor) else None
    if found is None:
        raise _unknown(f"multipleOf: {divisor}")
    return found


def _kind(value: Any) -> str:
    """Return the type of a value of JSON."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int | float):
        return "integer" if isinstance(value, int) or value.is_integer() else "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two values of JSON are equal: true is not 1, but 1.0 is."""
    if _kind(one) != _kind(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    return bool(one == other)


def _meets_number(value: float, schema: Mapping[str, Any]) -> bool:
    number = Decimal(str(value))
    over = [(sign * (number - bound), is_strict) for sign, bound, is_strict in _bounds(schema)]
    return all(by > 0 or (by == 0 and not is_strict) for by, is_strict in over) and (
        "multipleOf" not in schema or number % _decimal(schema, "multipleOf") == 0
    )


@functools.lru_cache(maxsize=1024)
def _is_empty(terminal: Terminal) -> bool:
    """Return whether no text matches; if that is too much work to tell, False."""
    if NOTHING in terminal.all_of:
        return True
    try:
        return len(terminal.all_of) + len(terminal.none_of) > 1 and is_empty(terminal, Budget(most_states=4_000))
    except ConfigError:
        return False


def _unknown(what: str) -> ConfigError:
    return ConfigError(f"The JSON schema cannot be used: {what} is not known.", "Leave out, or correct, what is named.")


def _missing(path: str) -> ConfigError:
    return ConfigError(f"The JSON schema refers to {path}, which is not in it.", "Add it under $defs.")
