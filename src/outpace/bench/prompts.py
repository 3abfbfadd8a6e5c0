"""Prompt sets: shipped ones, and JSON-lines files of the same shape."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from outpace.errors import ConfigError, nearest

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = ["Prompt", "encode_prompt", "read_prompts", "set_names"]

_HOME = Path(__file__).parent / "prompts"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to continue, or to answer.

    Attributes:
        set: name of its set.
        id: unique within the set.
        text: the prompt.
        origin: data set and row that it was taken from, "" = unknown.
        licence: its licence, "" = unknown.
        is_asked: the text is what a user says: models with a chat template answer it.
    """

    set: str
    id: str
    text: str
    origin: str = ""
    licence: str = ""
    is_asked: bool = False


def encode_prompt(lm: LanguageModel, prompt: Prompt) -> list[int]:
    """Return the ids of a prompt; what is asked is framed by the chat template of a model that has one."""
    if prompt.is_asked and lm.tokenizer is not None and lm.tokenizer.has_chat:
        return lm.encode_chat([{"role": "user", "content": prompt.text}])
    return lm.encode(prompt.text)


def set_names() -> tuple[str, ...]:
    """Return the names of the shipped sets."""
    return tuple(sorted(path.stem for path in _HOME.glob("*.jsonl")))


def read_prompts(name: str, limit: int = 0) -> list[Prompt]:
    """Return the prompts of a shipped set or a file, at most `limit` (0 = all).

    A file holds one JSON object with a "text" to continue or, for chat models, a "user"'s words to answer (and perhaps
    an "id") per line; any other file is prompts parted by empty lines.

    Raises:
        ConfigError: no such set or file, or a line that is no prompt.
    """
    path = _HOME / f"{name}.jsonl" if name in set_names() else Path(name)
    if not path.is_file():
        raise ConfigError(f"There is no prompt set or file {name!r}.", nearest(name, set_names(), "set"))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"The prompt file {name!r} is not valid UTF-8.", "Convert it with iconv -t utf-8.") from None
    if path.suffix == ".jsonl":
        found = [_parse(line, path.stem, number) for number, line in enumerate(text.splitlines()) if line.strip()]
    else:
        parts = [part for part in text.split("\n\n") if part.strip()]
        found = [Prompt(path.stem, str(number), part) for number, part in enumerate(parts)]
    if not found:
        raise ConfigError(f"The prompt file {name!r} holds no prompt.", "Write one JSON object with a text per line.")
    return found[:limit] if limit else found


def _parse(line: str, name: str, number: int) -> Prompt:
    try:
        fields = json.loads(line)
        origin, licence = (str(fields.get(key, "")) for key in ("origin", "licence"))
        is_asked = "text" not in fields
        text = str(fields["user" if is_asked else "text"])
        return Prompt(name, str(fields.get("id", number)), text, origin, licence, is_asked)
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ConfigError(
            f"Line {number + 1} of the prompt set {name!r} is no prompt.", 'Write {"id": "...", "text": "..."}.'
        ) from None
