"""Where trained drafters lie: those that ship, and those that `outpace train drafter` made, by target and kind."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from outpace import store, zoo
from outpace.errors import ConfigError, ModelError
from outpace.heads.files import is_head, read_config

__all__ = ["drafters_folder", "find_head", "head_name", "target_word"]


def drafters_folder() -> Path:
    """Return where trained drafters are kept, and the texts that they were trained on."""
    return store.cache_folder() / "drafters"


def target_word(target: str) -> str:
    """Return one word for a target: the name of a shipped one, else its own and a hash of where it lies."""
    target = target.removeprefix("hf:")
    path = Path(target)
    if not path.exists():
        return re.sub(r"[^\w.-]+", "-", target)
    path = path.resolve()
    shipped = next((name for name in zoo.names() if zoo.path(name).resolve() == path), None)
    if shipped is not None:
        return shipped
    name = re.sub(r"[^\w.-]+", "-", path.stem if path.is_file() else path.name)
    return f"{name}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"


def head_name(target: str, kind: str) -> str:
    """Return what the drafter of a kind is called that was trained for a target."""
    return f"{target_word(target)}-{kind}"


def find_head(target: str, kind: str, known: Iterable[Path] = ()) -> Path:
    """Return the directory of the drafter of a kind for a target, one that was trained here before one that ships.

    Args:
        target: what the target was loaded as.
        kind: of the drafter.
        known: drafters that fit the target whatever they are called (`outpace.heads.known`), the best one first.

    Raises:
        ConfigError: there is none; the hint is the command that trains one.
    """
    name = head_name(target, kind)
    for directory in (drafters_folder() / name, _shipped(name)):
        if directory is not None and is_head(directory):
            return directory
    for directory in known:
        if read_config(directory).kind == kind:
            return directory
    raise ConfigError(
        f"No drafter of the kind {kind!r} is known for {target!r}.",
        f"Train one with outpace train drafter --kind {kind} --target {target}, or name one with -o draft=DIRECTORY.",
    )


def _shipped(name: str) -> Path | None:
    try:
        return zoo.path(name)
    except ModelError:
        return None
