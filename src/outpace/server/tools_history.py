"""Turns of a conversation as chat templates read them: from the items of /v1/responses and the blocks of /v1/messages.

Templates want a call's arguments as an object; clients of OpenAI's send them as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from pydantic import ValidationError

from outpace.server.errors import Refused
from outpace.server.schemas import ChatBody

__all__ = ["chat_body", "from_blocks", "from_items", "with_objects", "with_texts"]

_Message = dict[str, Any]
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_ROLES = ("user", "assistant", "system", "developer")


def chat_body(fields: Mapping[str, Any]) -> ChatBody:
    """Return the body of a chat.

    Raises:
        Refused: 400, a field is of another kind.
    """
    try:
        return ChatBody.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Refused(400, f"{where}: {first['msg']}."[:500], param=where, code="invalid_value") from None


def with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with its calls' arguments as objects, where they are the text of one."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_with_object(call) for call in calls]}


def _with_object(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    text = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(text, str) or function is None:
        return call
    try:
        found = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return call
    return {**call, "function": {**function, "arguments": found}} if isinstance(found, dict) else call


def with_texts(message: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a message whose content, where that is a list, holds texts alone, as templates know them.

    Raises:
        Refused: 400, a part that is no text: templates would drop it without a word.
    """
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = ((part, f"{where}.content[{number}]") for number, part in enumerate(content))
    texts = [part if isinstance(part, str) else {"type": "text", "text": _part(part, place)} for part, place in parts]
    return {**message, "content": texts}


class _Turns:
    """Messages one behind another; what the assistant thinks, says and calls in one turn is one message."""

    def __init__(self) -> None:
        self.messages: list[_Message] = []

    def add(self, role: str, content: str, **more: Any) -> None:
        """Append a message of its own."""
        self.messages.append({"role": role, "content": content, **more})

    def reasoning(self, text: str) -> None:
        """Append what the assistant thinks."""
        turn = self._assistant()
        turn["reasoning_content"] = turn.get("reasoning_content", "") + text

    def say(self, text: str) -> None:
        """Append what the assistant says."""
        self._assistant()["content"] += text

    def call(self, id: str, name: str, arguments: Any) -> None:
        """Append a call of the assistant."""
        call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        self._assistant().setdefault("tool_calls", []).append(call)

    def answer(self, id: str, content: str) -> None:
        """Append what a call returned."""
        calls = (call for it in self.messages for call in it.get("tool_calls", ()))
        name = next((call["function"]["name"] for call in calls if call["id"] == id), None)
        self.add("tool", content, tool_call_id=id, **({"name": name} if name else {}))

    def _assistant(self) -> _Message:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.add("assistant", "")
        return self.messages[-1]


def from_items(items: str | Sequence[Any]) -> list[_Message]:
    """Return the messages of the input of /v1/responses.

    Raises:
        Refused: 400, an item that is not served, or is not as it should be.
    """
    turns = _Turns()
    if isinstance(items, str):
        turns.add("user", items)
        return turns.messages
    for number, item in enumerate(items):
        where = f"input[{number}]"
        if not isinstance(item, Mapping):
            raise _wrong(where, "is no object")
        kind = item.get("type", "message")
        if kind == "message":
            _add_message(turns, item, where)
        elif kind == "reasoning":
            turns.reasoning(_text(item.get("content") or item.get("summary") or [], f"{where}.content"))
        elif kind == "function_call":
            turns.call(*(_string(item, name, where) for name in ("call_id", "name", "arguments")))
        elif kind == "function_call_output":
            turns.answer(_string(item, "call_id", where), _text(item.get("output"), f"{where}.output"))
        else:
            raise _wrong(where, f"is of type {str(kind)[:50]!r}, which is not served")
    return turns.messages


def _add_message(turns: _Turns, item: Mapping[str, Any], where: str) -> None:
    role, content = item.get("role"), _text(item.get("content"), f"{where}.content")
    if role not in _ROLES:
        raise _wrong(f"{where}.role", f"is none of {', '.join(_ROLES)}")
    if role == "assistant":
        turns.say(content)
    else:
        turns.add(role, content)


def from_blocks(messages: Sequence[Any], system: Any = None) -> list[_Message]:
    """Return the messages of /v1/messages, the system's first.

    Raises:
        Refused: 400, a block that is not served, or is not as it should be.
    """
    turns = _Turns()
    if system:
        turns.add("system", _text(system, "system"))
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping) or message.get("role") not in ("user", "assistant", "system"):
            raise _wrong(where, "is no message of a user or an assistant")
        content = message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list):
            raise _wrong(f"{where}.content", "is neither text nor a list of blocks")
        if message["role"] == "assistant":
            _add_blocks(turns, blocks, where)
        else:
            _add_users(turns, message["role"], blocks, where)
    return turns.messages


def _add_blocks(turns: _Turns, blocks: Iterable[Any], where: str) -> None:
    """Append what the assistant did."""
    for number, block in enumerate(blocks):
        place = f"{where}.content[{number}]"
        kind = _kind(block, place)
        if kind == "text":
            turns.say(_string(block, "text", place))
        elif kind == "thinking":
            turns.reasoning(_string(block, "thinking", place))
        elif kind == "tool_use":
            given = block.get("input")
            if not isinstance(given, Mapping):
                raise _wrong(f"{place}.input", "is no object")
            turns.call(_string(block, "id", place), _string(block, "name", place), given)
        elif kind != "redacted_thinking":
            raise _wrong(place, f"is of type {kind!r}, which is not served")


def _add_users(turns: _Turns, role: str, blocks: Sequence[Any], where: str) -> None:
    """Append what a user says, behind what calls returned."""
    said = []
    for number, block in enumerate(blocks):
        place = f"{where}.content[{number}]"
        kind = _kind(block, place)
        if kind == "tool_result":
            text = _text(block.get("content") or "", f"{place}.content")
            turns.answer(_string(block, "tool_use_id", place), f"Error: {text}" if block.get("is_error") else text)
        elif kind == "text":
            said.append(_string(block, "text", place))
        else:
            raise _wrong(place, f"is of type {kind!r}, which is not served")
    if said:
        turns.add(role, "\n".join(said))


def _kind(block: Any, where: str) -> str:
    if not isinstance(block, Mapping):
        raise _wrong(where, "is no object")
    return str(block.get("type", "text"))[:50]


def _text(content: Any, where: str) -> str:
    """Return a text, or those of a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(where, "is neither text nor a list of parts")
    return "\n".join(_part(part, f"{where}[{number}]") for number, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    """Return the text of a part."""
    kind = _kind(part, where)
    if kind == "refusal":
        return _string(part, "refusal", where)
    if kind in _TEXTS:
        return _string(part, "text", where)
    raise _wrong(where, f"is of type {kind!r}, which is not served")


def _string(item: Mapping[str, Any], name: str, where: str) -> str:
    found = item.get(name)
    if not isinstance(found, str):
        raise _wrong(f"{where}.{name}", "is no text")
    return found


def _wrong(where: str, what: str) -> Refused:
    return Refused(400, f"{where} {what}.", param=where, code="invalid_value")
