"""Conversations as text, as transformers renders them: which of a checkpoint's templates speaks, and what it sees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from outpace.errors import ConfigError, ModelError, nearest
from outpace.text.files import AGAIN, read_object, read_text

__all__ = ["ROLES", "Message", "choose_template", "is_chat", "read_templates", "render_chat", "unread"]

Message = Mapping[str, Any]
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_DEFAULT = "default"
_MARK = "[[here the message goes on]] "  # the space shows whether the template strips what it is given
_REASONING = ("reasoning_content", "thinking", "reasoning")  # what a message's reasoning is called, the standard first


def read_templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return a directory's chat templates by name; a lone one is "default".

    Files of their own (chat_template.jinja, additional_chat_templates/NAME.jinja) replace the key of the parsed
    tokenizer_config.json, which holds a text, or several by name; a processor's files speak where neither does.

    Raises:
        ModelError: a template is not text.
    """
    extra = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    files = {path.stem: read_text(path) for path in extra}
    lone = folder / "chat_template.jinja"
    if lone.is_file():
        return files | {_DEFAULT: read_text(lone)}
    stated = settings.get("chat_template")
    for name in ("chat_template.json", "processor_config.json"):
        if not stated and not files and (folder / name).is_file():
            stated = read_object(folder / name).get("chat_template")
    return _by_name(stated, folder) | files


def _by_name(stated: Any, folder: Path) -> dict[str, str]:
    if isinstance(stated, list) and all(isinstance(item, Mapping) for item in stated):
        stated = {item.get("name"): item.get("template") for item in stated}
    named = stated if isinstance(stated, Mapping) else {_DEFAULT: stated} if stated else {}
    if not all(isinstance(text, str) for pair in named.items() for text in pair):
        raise ModelError(f"The chat template of {folder} is not text.", AGAIN)
    return dict(named)


def choose_template(
    named: Mapping[str, str], wanted: str | None = None, tools: Any = None, documents: Any = None
) -> str:
    """Return the template for a conversation.

    With tools that is "tool_use" where it exists, as in transformers. Documents are told to "rag" where "default" would
    not look at them; transformers takes that one only when it is named.

    Args:
        named: the checkpoint's templates.
        wanted: the name of one of them, or a template.
        tools, documents: what the conversation brings.

    Raises:
        ConfigError: there is none, or none of that name.
    """
    if wanted is not None and "{" in wanted:
        return wanted
    if not named:
        raise ConfigError("This model has no chat template.", hint="Give plain text instead of messages.")
    if wanted is None:
        wanted = "tool_use" if tools is not None and "tool_use" in named else _DEFAULT
        if wanted == _DEFAULT and documents is not None and "rag" in named and _ignores(named, "documents"):
            wanted = "rag"
    if wanted not in named:
        raise ConfigError(f"This model has no chat template {wanted!r}.", nearest(wanted, named, "template"))
    return named[wanted]


def _ignores(named: Mapping[str, str], variable: str) -> bool:
    return _DEFAULT not in named or variable in unread(named[_DEFAULT], [variable])


def unread(template: str, variables: Sequence[str]) -> list[str]:
    """Return those of some variables that a template never looks at."""
    from outpace.text.template import reads

    seen = reads(template)
    return [name for name in variables if name not in seen]


def is_chat(value: Any) -> bool:
    """Return whether a value is a conversation: a sequence of messages."""
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(item, Mapping) for item in value)


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    is_open: bool = True,
    is_continued: bool = False,
    tools: Any = None,
    documents: Any = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Return the text of a conversation, as transformers' `apply_chat_template` renders it.

    Content in the other form than the template knows (parts for one that joins texts, a text for one that walks over
    parts) is handed over in the form that it knows; transformers writes a list's Python there, or nothing.

    Args:
        template: Jinja.
        messages: {"role": ..., "content": ...} each; a key whose value is None counts as missing.
        is_open: end with the words that make the model answer.
        is_continued: the last message is unfinished, and the model goes on with it; `is_open` says nothing then.
        tools: JSON schemas of functions, or functions with type hints and docstrings (this needs transformers).
        documents: mappings, with "title" and "text" as a rule.
        variables: further variables of the template; special tokens among them.

    Raises:
        ConfigError: messages, tools or documents of another kind, or the template refuses them.
    """
    chat = _messages(messages)
    if is_continued:
        _mark_end(chat)
    names = {
        "tools": None
        if tools is None
        else [_tool(tool) for tool in ([tools] if isinstance(tools, Mapping) else tools)],
        "documents": None if documents is None else [_document(document) for document in documents],
        "add_generation_prompt": is_open and not is_continued,
    }
    names |= {name: _plain(value) for name, value in (variables or {}).items()}
    text = _in_known_form(template, chat, names)
    return _cut_at_mark(text) if is_continued else text


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the messages as plain data, the caller's untouched."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise ConfigError("A conversation is a list of messages.", _MESSAGE_HINT)
    chat = [_plain(message) for message in messages]
    if not chat:
        raise ConfigError("The conversation is empty.", "Give at least one message.")
    for given, message in zip(messages, chat, strict=True):
        if not isinstance(message, dict):
            raise ConfigError(f"A message is a {type(given).__name__}, not a mapping.", _MESSAGE_HINT)
    return [_with_reasoning(_without_none(message)) for message in chat]


_MESSAGE_HINT = 'Write each as {"role": "user", "content": "..."}.'


def _without_none(message: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if value is not None}


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with its reasoning under the names that templates read."""
    found = next((message[name] for name in _REASONING if name in message), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}


def _plain(value: Any) -> Any:
    """Return a value as plain data; an image or the like becomes its type's name, since a template only asks for it."""
    if value is None or type(value) in (bool, str, int, float):
        return value
    for kind, turn in _BASES.items():  # an enumeration or a scalar of numpy may say something else of itself
        if isinstance(value, kind):
            return turn(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value] if isinstance(value, list) else tuple(_plain(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):  # pydantic
        return _plain(dump())
    return _plain(value.item()) if isinstance(value, np.generic) else f"<{type(value).__name__}>"


_BASES: dict[type, Callable[[Any], Any]] = {str: str.__str__, int: int.__int__, float: float.__float__}


def _tool(tool: Any) -> Any:
    if isinstance(tool, Mapping):
        return _plain(tool)
    if not callable(tool):
        raise ConfigError(f"A tool is a {type(tool).__name__}.", "Give the JSON schema of a function, as a mapping.")
    return _plain(_schema_maker()(tool))


def _schema_maker() -> Callable[[Any], Any]:
    """Return what reads a function's type hints and docstring."""
    try:
        from transformers.utils.chat_template_utils import get_json_schema
    except ImportError:
        hint = "Give its JSON schema, or pip install outpace[transformers]."
        raise ConfigError("Reading a tool from a function needs transformers.", hint) from None

    def make(function: Any) -> Any:
        try:
            return get_json_schema(function)
        except Exception as error:  # no type hint, no docstring, no description of an argument
            raise ConfigError(f"No schema can be made of a tool: {' '.join(str(error).split())}.") from error

    return make


def _document(document: Any) -> Any:
    if not isinstance(document, Mapping):
        raise ConfigError(f"A document is a {type(document).__name__}.", 'Write it as {"title": "...", "text": "..."}.')
    return _plain(document)


# Content as the template knows it


def _in_known_form(template: str, chat: list[dict[str, Any]], names: Mapping[str, Any]) -> str:
    """Render; where the template loses a text, or does not know parts, once more in the other form."""
    from outpace.text.template import render

    if any(isinstance(message.get("content"), list) for message in chat):
        return _from_parts(template, chat, names)
    text = render(template, {**names, "messages": chat})
    said = [message["content"].strip() for message in chat if _is_users(message)]
    if all(content in text for content in said):
        return text
    in_parts = [
        message | {"content": _parts(message["content"])} if _is_users(message) else message for message in chat
    ]
    try:
        other = render(template, {**names, "messages": in_parts})
    except ConfigError:
        return text
    return other if all(content in other for content in said) else text


def _is_users(message: Mapping[str, Any]) -> bool:
    return message.get("role") == "user" and isinstance(message.get("content"), str)


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _from_parts(template: str, chat: list[dict[str, Any]], names: Mapping[str, Any]) -> str:
    """Render messages some of which hold parts: as they are, or joined for a template that knows only texts."""
    from outpace.text.template import render

    lists = [message["content"] for message in chat if isinstance(message.get("content"), list)]
    refusal: ConfigError | None = None
    try:
        text = render(template, {**names, "messages": chat})
        if not any(str(parts) in text for parts in lists if parts):
            return text
    except ConfigError as error:
        refusal = error
    other = sorted({kind for parts in lists for part in parts if (kind := _kind(part)) != "text"})
    if other:
        what = f"The chat template takes text only, but a message holds a part of type {other[0]!r}."
        raise refusal or ConfigError(what, "Leave that part out.")
    joined = [{**message, "content": _joined(message.get("content"))} for message in chat]
    try:
        return render(template, {**names, "messages": [_without_none(message) for message in joined]})
    except ConfigError as error:
        raise refusal or error from None


def _kind(part: Any) -> str:
    if isinstance(part, Mapping):
        return str(part.get("type", "text" if "text" in part else "unknown"))
    return "text" if isinstance(part, str) else type(part).__name__


def _joined(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return "\n".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)


# An unfinished last message


def _mark_end(chat: list[dict[str, Any]]) -> None:
    """Put a mark behind the text that the model is to go on with."""
    content = chat[-1].get("content")
    texts = [part for part in content if isinstance(part, dict) and "text" in part] if isinstance(content, list) else []
    if isinstance(content, str):
        chat[-1]["content"] = content + _MARK
    elif texts:
        texts[-1]["text"] += _MARK
    else:
        raise ConfigError("The last message has no text to go on with.", "Give it content, or leave out is_continued.")


def _cut_at_mark(text: str) -> str:
    at = text.rfind(_MARK.rstrip())
    if at < 0:
        raise ConfigError("The chat template leaves out the end of the last message.", "Leave out is_continued.")
    return text[:at] if text.startswith(_MARK, at) else text[:at].rstrip()
