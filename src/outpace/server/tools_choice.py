"""From a request's tools to how its answer is written and read: `tool_choice` as a grammar, and the parser for it.

    reading = read_tools(tokenizer, body.tools, body.tool_choice, prompt=text)   # text: what the template rendered
    ask = Ask(prompt=ids, arguments={**arguments, **reading.arguments})
    parser = reading.parser()                                                    # one for each sample

"required" and a named tool are constraints in the model's own format: there is a call, and its arguments meet the
tool's schema. Where the model reasons, the reasoning stays free and the constraint holds behind it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from outpace.constrain.grammar import Grammar
from outpace.constrain.reading import Asked, read_asked
from outpace.constrain.schema import read_schema
from outpace.errors import ConfigError, nearest
from outpace.server.reasoning import Tags, choose_tags
from outpace.server.tools import MessageParser, needs_special
from outpace.server.tools_calls import FORMATS, Format, choose_format
from outpace.text.chat import choose_template
from outpace.text.tokenizer import Tokenizer

__all__ = ["Reading", "read_tools", "tools_told"]

_NAME = re.compile(r"[\w.\-]{1,128}", re.ASCII)
_MOST_TOOLS = 1_000
_CHOICES = ("none", "auto", "required")
_STRICT = "strict holds for tool_choice required and for named tools; else arguments are what the model writes."


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How an answer is written and read.

    Attributes:
        arguments: for `Ask.arguments`, beside the request's own: a grammar, keep_special.
        tools: what the chat template is to be told of, OpenAI's objects; None = of no tools.
        notes: what the client should know.
        format, tags, names, is_open, is_parallel, hidden: of the parser.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] | None = None
    notes: tuple[str, ...] = ()
    format: Format | None = None
    tags: Tags | None = None
    names: tuple[str, ...] = ()
    is_open: bool = False
    is_parallel: bool = True
    hidden: frozenset[str] = frozenset()

    def parser(self) -> MessageParser:
        """Return a fresh parser; every sample needs its own."""
        return MessageParser(
            self.format,
            self.tags,
            self.names,
            is_open=self.is_open,
            is_parallel=self.is_parallel,
            hidden=self.hidden,
        )


def tools_told(tools: Sequence[Any] | None, choice: Any) -> list[Mapping[str, Any]] | None:
    """Return the tools that the chat template is told of: none with tool_choice "none", as none may be called.

    Raises:
        ConfigError: a tool that is no function, or has no name or a schema that is none; two of one name.
    """
    found = [_checked(tool) for tool in tools or ()]
    names = [tool["function"]["name"] for tool in found]
    if len(found) > _MOST_TOOLS:
        raise ConfigError(f"{len(found)} tools are too many.", f"Give at most {_MOST_TOOLS}.")
    if len(set(names)) < len(names):
        raise ConfigError("Two tools have one name.", "Give each tool a name of its own.")
    return found if found and choice != "none" else None


def read_tools(
    tokenizer: Tokenizer,
    tools: Sequence[Any] | None = None,
    choice: Any = None,
    *,
    prompt: str = "",
    is_parallel: bool = True,
    format: str = "auto",
    reasoning: str = "auto",
    template: str | None = None,
    answer: Mapping[str, Any] | None = None,
) -> Reading:
    """Return how the answer to a chat is written and read.

    Args:
        tokenizer: the model's.
        tools: OpenAI's objects, {"type": "function", "function": {"name", "description", "parameters"}} each.
        choice: "none", "auto", "required", {"type": "function", "function": {"name": ...}}, or None: "auto".
        prompt: what the chat template rendered, special tokens and all: it may end within reasoning.
        is_parallel: several calls may be made.
        format, reasoning: names; see `choose_format` and `choose_tags`.
        template: the chat template's name, if one was named.
        answer: a constraint of the answer, as `Ask.arguments` has it ({"json_schema": ...} and so on): it holds for
            the content behind the reasoning, and there are no calls, unless `choice` asks for them.

    Raises:
        ConfigError: a tool or choice that is none, or a schema that cannot be used.
    """
    told = tools_told(tools, choice)
    names = tuple(tool["function"]["name"] for tool in told or ())
    named = _named(choice, names)
    source = choose_template(tokenizer.templates, template, told) if tokenizer.templates else ""
    tags, form = choose_tags(reasoning, source), choose_format(format, source) if names else None
    is_open, special = tags is not None and tags.is_open(prompt), tokenizer.special_ids
    arguments: dict[str, Any] = dict(answer or {})
    if named or choice == "required":
        form = form or FORMATS["json"]
        wanted = [tool["function"] for tool in told or () if named in ("", tool["function"]["name"])]
        is_many = is_parallel and not named
        arguments = {"grammar": _Writer(special, source).calls(wanted, form, is_many, tags, is_open)}
    elif answer:
        form = None
        if tags is not None and "grammar" not in answer:
            asked = read_asked(cast(Asked, answer))
            arguments = {"grammar": _Writer(special, source).answer(asked[1], tags, is_open)}
    if needs_special(form, tags, special):
        arguments["keep_special"] = True
    is_strict = "grammar" not in arguments and any(tool["function"].get("strict") for tool in told or ())
    return Reading(
        arguments=arguments,
        tools=told,
        notes=(_STRICT,) if is_strict else (),
        format=form,
        tags=tags,
        names=(named,) if named else names,
        is_open=is_open,
        is_parallel=is_parallel and not named,
        hidden=frozenset(special) if "keep_special" in arguments else frozenset(),
    )


def _checked(tool: Any) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
        what = f"A tool of type {str(tool.get('type'))[:50]!r}" if isinstance(tool, Mapping) else "A tool"
        raise ConfigError(f"{what} is no function.", 'Write {"type": "function", "function": {"name": "..."}}.')
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            "A tool has no name that can be used.", "Names have 1 to 128 letters, digits, _, - and points."
        )
    if not isinstance(parameters, Mapping | None):
        raise ConfigError(f"The parameters of {name} are no JSON schema.", 'Write {"type": "object", ...}.')
    return tool  # type: ignore[no-any-return]


def _named(choice: Any, names: Sequence[str]) -> str:
    """Return the function that has to be called; "" = none in particular."""
    if choice in (None, *_CHOICES):
        if choice == "required" and not names:
            raise ConfigError("tool_choice is required, but there are no tools.", "Give tools, or leave it out.")
        return ""
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        known = '"none", "auto", "required" or {"type": "function", "function": {"name": "..."}}'
        raise ConfigError("tool_choice is of another kind.", f"Write {known}.")
    if name not in names:
        raise ConfigError(f"tool_choice names {name[:128]!r}, which is no tool.", nearest(name[:128], names, "tool"))
    return name


class _Writer:
    """Writes grammars in Lark's syntax.

    Args:
        special: ids of special tokens by their text; marks among them are written as tokens.
        template: the chat template's text.
    """

    def __init__(self, special: Mapping[str, int], template: str) -> None:
        self._special, self._template, self._lines = special, template, list[str]()

    def calls(
        self, functions: Sequence[Mapping[str, Any]], form: Format, is_many: bool, tags: Tags | None, is_open: bool
    ) -> str:
        """Return the grammar of one call or several, behind reasoning."""
        is_argued = form.name == "mistral" and "[ARGS]" in self._template  # the newer form
        mark, key = self._mark(form.opener), "parameters" if form.name == "llama3" else "arguments"
        ways = []
        for number, function in enumerate(functions):
            name = function["name"]
            arguments = self._include(
                read_schema({"type": "object", **(function.get("parameters") or {})}), f"_{number}"
            )
            head = f'{{"name": {json.dumps(name)}, "{key}": '
            whole = (
                [mark, _text(name), self._mark("[ARGS]"), arguments] if is_argued else [_text(head), arguments, '"}"']
            )
            ways.append(" ".join(whole))
        self._lines.append(f"call: {' | '.join(ways)}")
        first, one, between, last = "", "call", "", ""
        if form.name == "hermes":
            one, between = f'{mark} "\\n" call "\\n" {self._mark("</tool_call>")}', '"\\n"'
        elif form.name == "llama3":
            between = '"; "'
        elif not is_argued and (form.name == "mistral" or is_many):
            first, between, last = f'{mark} "["', '", "', '"]"'
        more = f"({between} {one})*" if is_many else ""
        return self._whole(f"{first} {one} {more} {last}", tags, is_open)

    def answer(self, grammar: Grammar | str, tags: Tags, is_open: bool) -> str:
        """Return the grammar of an answer behind reasoning."""
        assert isinstance(grammar, Grammar)
        return self._whole(self._include(grammar, "_0"), tags, is_open)

    def _whole(self, body: str, tags: Tags | None, is_open: bool) -> str:
        if tags is not None:
            close = re.escape(tags.close).replace("/", r"\/")
            if tags.close in self._special:
                self._lines.append(f"thought: THOUGHT {self._mark(tags.close)} SPACES")
                self._lines.append(r"THOUGHT: /(?s:.*)/")
            else:
                self._lines.append("thought: THOUGHT SPACES")
                self._lines.append(rf"THOUGHT: /(?s:.*){close}/ & ~/(?s:.*){close}(?s:.+)/")
            self._lines.append(r"SPACES: /[ \n]{0,4}/")
            body = f"thought {body}" if is_open else f"({self._mark(tags.open)} thought)? {body}"
        return "\n".join([f"start: {body}", *self._lines])

    def _mark(self, text: str) -> str:
        return f"<[{self._special[text]}]>" if text in self._special else _text(text) if text else ""

    def _include(self, grammar: Grammar, suffix: str) -> str:
        """Add a grammar's rules under names of their own; return the first one's."""
        for line in grammar.to_lark().splitlines():
            name, _, body = line.partition(": ")
            words = body.split(" ")  # an empty one is an empty alternative
            parts = [body] if name[0] == "T" else [word + suffix if word not in ("|", "") else word for word in words]
            self._lines.append(f"{name}{suffix}: {' '.join(parts)}")
        return f"start{suffix}"


def _text(text: str) -> str:
    """Return a text as Lark writes it."""
    return json.dumps(text, ensure_ascii=False)
