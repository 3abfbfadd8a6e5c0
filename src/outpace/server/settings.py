"""What a server allows: its limits, its keys, and what requests get that do not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outpace.errors import ConfigError
from outpace.server.reasoning import TAGS
from outpace.server.tools_calls import FORMATS
from outpace.setting import Option, check, setting

__all__ = ["ServerSettings", "read_keys"]

_MOST_KEY_BYTES = 1 << 20  # of a file with keys
_SHORTEST_KEY = 8  # characters


def _limit(default: float, text: str, **bounds: Any) -> Any:
    """Return a limit that the command line shows with its default."""
    return setting(default, option=Option(text, is_shown=True), **bounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """The limits of a server.

    Attributes:
        method, options: how texts are written where a request says nothing.
        rewards: FILE.py:function by the names under which searches may ask for them.
        laws: LAW:key=value,... by the names under which requests may ask for them; these may name files.
        keys: who may ask; empty = everybody.
        hosts: names that the Host header may hold; empty = any. It keeps web pages from reaching a server on loopback
            under a name of their own.
        origins: web pages that may ask from a browser; empty = only the server's own.
        max_prompt: tokens of a prompt; 0 = what the model's context holds.
        max_output: tokens to write per sample; 0 = what the model's context holds.
        max_samples: texts per prompt (n).
        max_prompts: prompts per request.
        max_stops: stop strings and stop tokens each.
        max_body: bytes of a request.
        max_requests: requests at a time; more are told to come again.
        timeout_s: seconds that a request may take.
        body_timeout_s: seconds until its body has to be there.
        ping_s: seconds of silence behind which a stream sends a comment.
        drain_s: seconds that running requests get when the server ends.
        logs_requests: bodies of requests go into the log.
        tool_format, reasoning_format: how the models write tool calls and reasoning; see `choose_format` and
            `choose_tags`.

    Raises:
        ConfigError: a limit is out of range.
    """

    method: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    rewards: Mapping[str, str] = field(default_factory=dict)
    laws: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_prompt: int = _limit(0, "Most tokens of a prompt; 0 = the context.", least=0)
    max_output: int = _limit(0, "Most tokens to write per sample; 0 = the context.", least=0)
    max_samples: int = _limit(16, "Most samples per prompt (n).", least=1)
    max_prompts: int = _limit(256, "Most prompts per request.", least=1)
    max_stops: int = _limit(32, "Most stop strings, and most stop tokens, per request.", least=0)
    max_body: int = _limit(8 << 20, "Most bytes of a request.", least=1024)
    max_requests: int = _limit(256, "Most requests at a time; others get 429.", least=1)
    timeout_s: float = _limit(600.0, "Seconds that a request may take.", above=0, is_finite=True)
    body_timeout_s: float = _limit(30.0, "Seconds until a request has to be there whole.", above=0, is_finite=True)
    ping_s: float = setting(15.0, above=0, is_finite=True)
    drain_s: float = _limit(30.0, "Seconds that running requests get at the end.", least=0, is_finite=True)
    logs_requests: bool = False
    tool_format: str = setting(
        "auto",
        among=("auto", "none", *FORMATS),
        option=Option("How the models write tool calls.", metavar="auto|NAME", is_shown=True),
    )
    reasoning_format: str = setting(
        "auto",
        among=("auto", "none", *TAGS),
        option=Option("How the models write reasoning.", metavar="auto|NAME", is_shown=True),
    )

    def __post_init__(self) -> None:
        check(self)


def read_keys(path: str | Path) -> tuple[str, ...]:
    """Return the keys of a file, one a line; empty lines and those that begin with # are left out.

    Raises:
        ConfigError: it cannot be read, is no text, or holds no key, or one that is short or holds a space.
    """
    hint = "Write one key a line, of 8 visible ASCII characters or more."
    try:
        with open(path, "rb") as file:
            found = file.read(_MOST_KEY_BYTES + 1)
        if len(found) > _MOST_KEY_BYTES:
            raise ConfigError(f"{path} is too large for a file of keys.", hint)
        lines = [line.strip() for line in found.decode("ascii").splitlines()]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", hint) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no file of keys.", hint) from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"{path} holds no key.", hint)
    if any(len(key) < _SHORTEST_KEY or not key.isprintable() or " " in key for key in keys):
        raise ConfigError(f"A key of {path} is too short, or holds a space.", hint)
    return keys
