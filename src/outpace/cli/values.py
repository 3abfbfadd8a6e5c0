"""Reading what was given on the command line: pairs, prompts, dtypes and devices."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from outpace.errors import ConfigError

__all__ = [
    "Device",
    "Dtype",
    "biases",
    "json_list",
    "json_schema",
    "json_values",
    "model_card",
    "options",
    "prompt_text",
    "text_file",
]


class Dtype(str, Enum):
    """Precisions to compute in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT64 = "float64"


class Device(str, Enum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


_EXAMPLES = {
    "option": "-o draft_len=8",
    "card": "--card logits_shift=false",
    "chat variable": "--chat-variable enable_thinking=false",
}


def model_card(given: Iterable[str]) -> Mapping[str, Any] | None:
    """Read `KEY=VALUE` pairs of --card; None = nothing is replaced."""
    from outpace.models.card import card_from_text

    return card_from_text(options(given, "card")) or None


def options(given: Iterable[str], what: str = "option") -> dict[str, str]:
    """Read `key=value` pairs; a later pair replaces an earlier one of the same key."""
    pairs = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"The {what} {item!r} is not key=value.", f"Write it as in {_EXAMPLES[what]}.")
        pairs[key.strip()] = value.strip()
    return pairs


def biases(given: Iterable[str]) -> Mapping[int, float]:
    """Read `ID=VALUE` pairs of --logit-bias."""
    pairs = {}
    for item in given:
        key, _, value = item.partition("=")
        try:
            pairs[int(key)] = float(value)
        except ValueError:
            raise ConfigError(
                f"The logit bias {item!r} is not ID=VALUE.", "Write it as in --logit-bias 42=-5."
            ) from None
    return pairs


def prompt_text(given: str | None, file: str | None = None, may_be_empty: bool = False) -> str:
    """Return the prompt: as given, or from a file, or from standard input for "-" or where it is piped in.

    One line break at the end of a file or of standard input is dropped, since `echo` and editors add it. The prompt may
    be empty where something else brings what is read.

    Raises:
        ConfigError: there is none, there are two, it is empty, or it is not UTF-8.
    """
    if given is not None and file is not None:
        raise ConfigError("A prompt and a --prompt-file were given.", "Leave one out.")
    is_piped = file == "-" or (file is None and (given is None or given == "-"))
    if is_piped and (sys.stdin is None or (given is None and file is None and sys.stdin.isatty())):
        raise ConfigError(
            "No prompt was given.", 'Write one, as in outpace generate "Once upon a time", or pipe it in.'
        )
    if is_piped:
        text = _without_break(_decode(sys.stdin.buffer.read(), "Standard input"))
    else:
        text = (given or "") if file is None else _without_break(text_file(file))
    if not text and not may_be_empty:
        raise ConfigError("The prompt is empty.", "Give at least one character.")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError("The prompt is not valid UTF-8.", "Pipe it in after iconv -t utf-8.")
    return text


def _without_break(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def json_schema(given: str) -> str:
    """Return the JSON of --json-schema: what was given, if it begins like an object, else that file's text."""
    return given if given.lstrip().startswith("{") else text_file(given)


def json_list(given: str, what: str) -> list[Any]:
    """Read the JSON list of --tools or --documents: what was given, if it begins like one, else that file's.

    Raises:
        ConfigError: it is neither, or holds something else than objects.
    """
    text = given if given.lstrip().startswith(("[", "{")) else text_file(given)
    try:
        found = json.loads(text)
    except ValueError:
        raise ConfigError(
            f"What --{what} gives is not JSON.", "Give a list of objects, or a file that holds one."
        ) from None
    items = found if isinstance(found, list) else [found]
    if not all(isinstance(item, dict) for item in items):
        raise ConfigError(f"--{what} holds something that is no object.", "Give a list of objects.")
    return items


def json_values(given: Iterable[str], what: str = "chat variable") -> dict[str, Any]:
    """Read `KEY=VALUE` pairs; a value that is JSON (false, 3, "x") is taken as such."""
    pairs: dict[str, Any] = {}
    for key, text in options(given, what).items():
        try:
            pairs[key] = json.loads(text)
        except ValueError:
            pairs[key] = text
    return pairs


def text_file(name: str) -> str:
    """Return the text of a file.

    Raises:
        ConfigError: it does not exist, is a directory, or is not UTF-8.
    """
    path = Path(name)
    if not path.exists() or path.is_dir():  # a pipe will do
        raise ConfigError(f"There is no file {name}.", "Check the path.")
    return _decode(path.read_bytes(), name)


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name} is not valid UTF-8 (byte {error.start}).", "Convert it, for example with iconv -f latin1 -t utf-8."
        ) from None
