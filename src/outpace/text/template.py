"""Jinja as chat templates are written for it: transformers' settings, filters and tags, in a sandbox.

A template comes with the weights and is not trusted: it sees plain data, and whatever it raises becomes a sentence.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from outpace.errors import ConfigError

__all__ = ["reads", "render"]


def render(template: str, variables: Mapping[str, Any]) -> str:
    """Return the text that a template makes of its variables.

    Raises:
        ConfigError: it is no Jinja, it refuses the variables, or it breaks off.
    """
    compiled = _compile(template)
    try:
        return compiled.render(**variables)
    except TemplateError as error:
        raise ConfigError(f"The chat template refused these messages: {_one_line(error)}.") from error
    except Exception as error:  # a template may go wrong in any way that Python knows
        what = f"{type(error).__name__}: {_one_line(error)}"
        raise ConfigError(f"The chat template failed on these messages ({what}).") from error


def reads(template: str) -> frozenset[str]:
    """Return the variables that a template looks at.

    Raises:
        ConfigError: it is no Jinja.
    """
    _compile(template)  # an error becomes a sentence there
    return frozenset(meta.find_undeclared_variables(_environment().parse(template)))


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    try:
        return _environment().from_string(template)
    except TemplateSyntaxError as error:
        what = f"The chat template cannot be read: {_one_line(error.message)} (line {error.lineno})."
        raise ConfigError(what, "Fetch the model again, or give another template.") from error


@functools.lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    extensions = [_Generation, "jinja2.ext.loopcontrols"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now, "namespace": _Namespace}
    return environment


class _Generation(Extension):
    """`{% generation %}` marks what training learns from; a reader sees nothing of it.

    The body is a block of its own, as in transformers: what it sets is not seen behind it.
    """

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_say"), [], [], body).set_lineno(line)

    def _say(self, caller: Macro) -> str:
        return caller()


class _Namespace(Namespace):
    """Jinja's namespace, without names that Python itself looks up."""

    def __init__(*args: Any, **names: Any) -> None:  # `self` may be among the names
        given = dict(*args[1:], **names)
        for name in given:
            _check_name(name)
        Namespace.__init__(args[0], given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace holds no {name!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
    *,
    skipkeys: bool = False,
    allow_nan: bool = True,
) -> str:
    """Return JSON, with json.dumps' own arguments; Jinja's filter of this name would escape it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        skipkeys=skipkeys,
        allow_nan=allow_nan,
    )


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _one_line(what: object) -> str:
    """Return a message on one line, without its full stop."""
    return " ".join(str(what or "no reason given").split()).rstrip(".")
