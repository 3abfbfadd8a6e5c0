"""How models write tool calls: the formats by name, and what reads them.

    hermes     <tool_call>{"name": ..., "arguments": {...}}</tool_call>        Hermes, Qwen and others
    llama3     <|python_tag|>{"name": ..., "parameters": {...}}; {...}         Llama 3; often without the tag
    mistral    [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]            or [TOOL_CALLS]name{...}, with [ARGS]
    json       {"name": ..., "arguments": {...}}, or an array of them          where the message is nothing else

In all of them "arguments" and "parameters" mean the same, keys come in any order, and others may stand among them.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Collection
from dataclasses import dataclass

from outpace.errors import ConfigError, nearest
from outpace.server.tools_message import Telling
from outpace.server.tools_walk import Ended, Fault, Marks, Tape, Walk

__all__ = ["FORMATS", "CallReader", "Enough", "Format", "choose_format"]

_NAMES, _ARGUMENTS = ("name", "function"), ("arguments", "parameters")
_BARE_KEYS = {*_NAMES, *_ARGUMENTS, "id", "type"}  # an object with others is an answer in JSON
_NAME = re.compile(r"[\w.\-]*")
_BETWEEN = re.compile(r"[\s;,]*")


class Enough(Exception):
    """The one call that was wanted is complete."""


class CallReader:
    """Reads calls off a tape and tells of them.

    Args:
        tape: what is read.
        telling: who is told.
        tools: names that may be called.
        begin: tells of a call by its name.
        is_parallel: `Enough` is raised behind the first call, if not.

    Attributes:
        safe: where the tape stands behind the last call since `start`; None = there was none.
    """

    def __init__(
        self, tape: Tape, telling: Telling, tools: Collection[str], begin: Callable[[str], None], is_parallel: bool
    ) -> None:
        self.tape = tape
        self._telling, self._tools, self._begin, self._is_parallel = telling, tools, begin, is_parallel
        self._from: int | None = None  # where arguments begin that are told as they come
        self._is_broken = False  # they are no JSON
        self.safe: int | None = None

    def start(self) -> None:
        """Forget where the last call ended."""
        self.safe = None

    def drain(self) -> None:
        """Tell what arrived of arguments, and forget it."""
        if self._from is not None:
            self._telling.arguments(self.tape.text[self._from : self.tape.at], self._is_broken)
            self.tape.cut()
            self._from = 0

    def done(self) -> None:
        """Note the end of a call, what closes it included."""
        self.safe = self.tape.at
        if not self._is_parallel:
            raise Enough

    def arguments(self, name: str, end: str) -> Walk[None]:
        """Read a JSON object as the arguments of a call, which is told of as soon as they begin as one.

        Args:
            name: of the function.
            end: mark of the call's end, for arguments that turn out to be no JSON; "" = none.
        """
        tape = self.tape
        if (yield from tape.json_next()) != "{":
            raise Fault
        start = tape.at
        tape.at += 1
        if (yield from tape.json_next()) not in '"}':
            raise Fault
        tape.at = start
        self._begin(name)
        self._from = start
        try:
            yield from tape.value()
        except Ended:
            tape.at = len(tape.text)
        except Fault:
            self.drain()
            self._is_broken = True
            yield from self._pass_until(end)
        self.drain()
        self._from, self._is_broken, self.safe = None, False, tape.at

    def _pass_until(self, end: str) -> Walk[None]:
        marks = Marks.of(frozenset({end}))
        while True:
            self.tape.at, mark = self.tape.find(marks)
            if mark or self.tape.is_ended:
                return
            yield

    def object(self, end: str, is_bare: bool = False) -> Walk[None]:
        """Read {"name": ..., "arguments": {...}}, in any order and with other keys.

        Args:
            end: as for `arguments`.
            is_bare: nothing marks it as a call, so that its keys have to.
        """
        tape, name, held, is_told = self.tape, "", "", False
        yield from tape.expect("{")
        try:
            while True:
                key = yield from tape.words()
                yield from tape.expect(":")
                found = yield from tape.json_next()
                if is_bare and key not in _BARE_KEYS and not is_told:
                    raise Fault
                if key in _NAMES and found == '"' and not name:
                    name = self._known((yield from tape.words()))
                elif key in _ARGUMENTS and name and found == "{" and not is_told:
                    yield from self.arguments(name, end)
                    is_told = True
                elif key in _ARGUMENTS and not is_told:
                    held = yield from self._held()
                else:
                    yield from tape.value()
                if (yield from tape.expect(",", "}")) == "}":
                    break
        except Fault:
            if not is_told:
                raise
        else:  # else the call is told of, and a brace that lacks behind its arguments does no harm
            if not is_told:
                self._begin(self._known(name))
                self._telling.arguments(held or "{}")
        self.safe = tape.at

    def _known(self, name: str) -> str:
        if name not in self._tools:
            raise Fault
        return name

    def _held(self) -> Walk[str]:
        """Return arguments that come before the name, or as text within a string, or as null."""
        start = self.tape.at
        yield from self.tape.value()
        text = self.tape.text[start : self.tape.at]
        value = json.loads(text)
        if isinstance(value, str):
            text = value
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise Fault from None
        if not isinstance(value, dict | None):
            raise Fault
        return text if value is not None else "{}"

    def array(self, end: str, is_bare: bool = False) -> Walk[None]:
        """Read an array of calls."""
        yield from self.tape.expect("[")
        while True:
            yield from self.object(end, is_bare)
            is_last = (yield from self.tape.expect(",", "]")) == "]"
            self.done()
            if is_last:
                return

    def named(self, end: str) -> Walk[None]:
        """Read name{...}, with what Mistral's tokenizers write between."""
        tape = self.tape
        yield from tape.spaces()
        start = tape.at
        yield from tape.run(_NAME)
        name = self._known(tape.text[start : tape.at])
        if (yield from tape.take(_CALL_ID)):
            yield from tape.run(_NAME)
        yield from tape.take(_ARGS)
        yield from self.arguments(name, end)
        self.done()

    def objects(self, end: str = "", is_bare: bool = False) -> Walk[None]:
        """Read calls one behind another, with white space, semicolons or commas between."""
        while True:
            yield from self.object(end, is_bare)
            self.done()
            if (yield from self.tape.run(_BETWEEN)) != "{":
                break
        assert self.safe is not None
        self.tape.at = self.safe


@dataclass(frozen=True, slots=True)
class Format:
    """How a model writes calls.

    Attributes:
        name: of the format.
        opener: mark that begins a call; "" = none.
        others: further marks within calls.
        bare: characters that begin calls without a mark, at the beginning of a message and behind another call.
        read: reads calls, behind the mark; told whether there was one.
        new_id: makes a call's id, in the form that the models' templates take.
    """

    name: str
    opener: str
    others: tuple[str, ...]
    bare: str
    read: Callable[[CallReader, bool], Walk[None]]
    new_id: Callable[[], str]

    @property
    def marks(self) -> tuple[str, ...]:
        """All its marks."""
        return (self.opener, *self.others) if self.opener else self.others


def _hermes(reader: CallReader, _: bool) -> Walk[None]:
    yield from reader.object(_CLOSE)
    yield from reader.tape.spaces()
    if not (yield from reader.tape.take(_CLOSE)):
        assert reader.safe is not None
        reader.tape.at = reader.safe
    reader.done()


def _llama3(reader: CallReader, is_marked: bool) -> Walk[None]:
    yield from reader.objects(is_bare=not is_marked)


def _mistral(reader: CallReader, _: bool) -> Walk[None]:
    if (yield from reader.tape.json_next()) == "[":
        yield from reader.array("")
    else:
        yield from reader.named(_TOOL_CALLS)


def _json(reader: CallReader, _: bool) -> Walk[None]:
    if (yield from reader.tape.json_next()) == "[":
        yield from reader.array("", is_bare=True)
    else:
        yield from reader.objects(is_bare=True)


def _long_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _short_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


_CLOSE, _TOOL_CALLS, _ARGS, _CALL_ID = "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
FORMATS = {
    format.name: format
    for format in (
        Format("hermes", "<tool_call>", (_CLOSE,), "", _hermes, _long_id),
        Format("llama3", "<|python_tag|>", (), "{", _llama3, _long_id),
        Format("mistral", _TOOL_CALLS, (_ARGS, _CALL_ID), "", _mistral, _short_id),
        Format("json", "", (), "{[", _json, _long_id),
    )
}


def choose_format(name: str, template: str = "") -> Format | None:
    """Return the format of a name: one of `FORMATS`, "none", or "auto" for the one that a chat template has.

    A template that speaks of tools, but of no known mark, has "json".

    Raises:
        ConfigError: there is no such name.
    """
    if name == "auto":
        known = [format for format in FORMATS.values() if format.opener and format.opener in template]
        if not known and ("<|start_header_id|>" in template or "ipython" in template) and "tools" in template:
            known = [FORMATS["llama3"]]  # Llama 3.2's small ones write bare objects
        if not known and "tools" in template:
            known = [FORMATS["json"]]
        return known[0] if known else None
    if name != "none" and name not in FORMATS:
        raise ConfigError(f"There is no tool format {name!r}.", nearest(name, [*FORMATS, "auto", "none"], "format"))
    return FORMATS.get(name)
