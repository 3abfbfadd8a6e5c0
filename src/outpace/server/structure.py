"""What a text has to look like, in every form that clients send it, as one constraint of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from outpace.server.errors import Refused

__all__ = ["CONSTRAINTS", "constraint"]

CONSTRAINTS = ("regex", "json_schema", "grammar")  # by our names

_MOST_CHARACTERS = 100_000  # of a schema, an expression or a grammar
_MOST_CHOICES = 1000
_OLD = {  # how servers call it beside response_format, and what of `structured_outputs` it is
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
    "ebnf": "grammar",
    "grammar": "grammar",
}
_OBJECT = {"type": "object"}


def constraint(
    response_format: Mapping[str, Any] | None, structured: Mapping[str, Any] | None, others: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the constraint that a request asks for, by our name (regex, json_schema, grammar); empty = none.

    Args:
        response_format: OpenAI's field.
        structured: vLLM's `structured_outputs`.
        others: fields beyond the known ones; guided_*, grammar and the like are read.

    Raises:
        Refused: a form that is not known, two constraints, or one that is too large.
    """
    found = dict([_of_format(response_format)] if response_format else [])
    found |= dict(_of_structured("structured_outputs", structured or {}))
    for name, kind in _OLD.items():
        if others.get(name) is not None:
            found |= dict(_of_structured(name, {kind: others[name]}))
    wanted = {where: one for where, one in found.items() if one}
    if len(wanted) > 1:
        raise _wrong(list(wanted)[1], f"{' and '.join(wanted)} ask for two constraints. Give one.")
    for where, one in wanted.items():
        ((name, value),) = one.items()
        size = len(value) if isinstance(value, str) else len(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))
        if size > _MOST_CHARACTERS:
            raise _wrong(where, f"{where} has {size} characters; at most {_MOST_CHARACTERS} are taken. Simplify it.")
        return {name: value}
    return {}


def _of_format(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    kind, where = given.get("type"), "response_format"
    if kind == "text":
        return where, {}
    if kind == "json_object":  # llama.cpp's clients put a schema beside it
        return where, _json(where, given.get("schema", _OBJECT))
    if kind == "json_schema":
        inner = given.get("json_schema", given)
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if schema is None:
            raise _wrong(where, "response_format.json_schema holds no schema. Give {name, schema}.")
        return where, _json(where, schema)
    if kind in ("regex", "grammar"):
        return where, dict(_of_structured(where, {kind: given.get(kind, given.get("pattern"))}))[where]
    known = "text, json_object, json_schema, regex, grammar"
    raise _wrong(where, f"response_format of type {str(kind)[:100]!r} is not served. Known types: {known}.")


def _of_structured(where: str, given: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for kind, value in given.items():
        if value is None or value is False:
            continue
        if kind not in _READERS:
            raise _wrong(where, f"{where}.{kind[:100]} is not served. Known: {', '.join(_READERS)}.")
        name = where if len(given) == 1 else f"{where}.{kind}"
        found.append((name, _READERS[kind](where, value)))
    return found


def _json(where: str, value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise _wrong(where, f"{where} is no JSON. Give a JSON schema.") from None
    if not isinstance(value, Mapping | bool):
        raise _wrong(where, f"{where} is no JSON schema. Give an object.")
    return {"json_schema": value}


def _object(where: str, value: Any) -> dict[str, Any]:
    del value
    return _json(where, _OBJECT)


def _regex(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, str):
        raise _wrong(where, f"{where} is no regular expression. Give a string.")
    return {"regex": value}


def _choice(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
        raise _wrong(where, f"{where} is no list of texts. Give at least one.")
    if len(value) > _MOST_CHOICES:
        raise _wrong(where, f"{where} has {len(value)} choices; at most {_MOST_CHOICES} are taken.")
    return {"regex": "|".join(re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", text) for text in value)}


def _grammar(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, str):
        raise _wrong(where, f"{where} is no grammar. Give a string.")
    if "::=" not in value:
        return {"grammar": value}
    try:  # GBNF, as llama.cpp and XGrammar read it
        from llguidance.gbnf_to_lark import any_to_lark

        return {"grammar": any_to_lark(value)}
    except ImportError:
        raise _wrong(where, "Grammars need llguidance: pip install outpace[constraints].") from None
    except Exception as error:
        raise _wrong(where, f"{where} cannot be read: {' '.join(str(error).split())[:200]}.") from None


_READERS: dict[str, Callable[[str, Any], dict[str, Any]]] = {
    "json": _json,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": _object,
}


def _wrong(where: str, message: str) -> Refused:
    return Refused(400, message, param=where, code="invalid_value")
