"""The small models that ship with the package: where they lie, and what their cards say. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from outpace.errors import ConfigError, ModelError, nearest

__all__ = ["ModelCard", "card", "drafter_of", "home", "method_of", "names", "path"]

_HOME = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a model's card says.

    Attributes:
        name: of the model and of its directory.
        summary: one sentence.
        parameters: how many.
        num_bytes: size of all files of the directory.
        objective: "causal", "masked", "block", "translation" or "distilled".
        parent: the model whose weights started or taught this one, or "".
        sources: names of the texts that it was trained on.
        licence: of the weights.
        method: how to decode it where nobody says, or "".
    """

    name: str
    summary: str
    parameters: int
    num_bytes: int
    objective: str
    parent: str
    sources: tuple[str, ...]
    licence: str
    method: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "sources": list(self.sources)}


@lru_cache(maxsize=1)
def names() -> tuple[str, ...]:
    """Return the names of the shipped models, in alphabetical order."""
    return tuple(sorted(config.parent.name for config in _HOME.glob("*/config.json")))


def home() -> Path:
    """Return where the shipped models lie, a directory each."""
    return _HOME


def path(name: str) -> Path:
    """Return the directory of a shipped model.

    Raises:
        ModelError: no such model; the hint names the nearest.
    """
    if name not in names():
        raise ModelError(f"No shipped model is called {name!r}.", nearest(name, names(), "model"))
    return _HOME / name


@lru_cache(maxsize=16)
def card(name: str) -> ModelCard:
    """Return what the card of a shipped model says; facts that it leaves out are empty.

    Raises:
        ModelError: no such model.
    """
    directory = path(name)
    text = _read(directory / "card.md")
    objective, _, origin = _fact(text, "objective").partition(", ")
    number = re.match(r"[\d,]+", _fact(text, "parameters"))
    return ModelCard(
        name=name,
        summary=_first(re.search(r"\A# .*\n+(.+)", text)),
        parameters=int(number[0].replace(",", "")) if number else 0,
        num_bytes=sum(file.stat().st_size for file in directory.iterdir() if file.is_file()),
        objective=objective,
        parent=_first(re.search(r"`(.+?)`", origin)),
        sources=tuple(re.findall(r"^\| (?!source )([\w-]+) \|", text, flags=re.MULTILINE)),
        licence=_first(re.search(r"weights ship under (\S+)", text)),
        method=_fact(text, "method"),
    )


def drafter_of(model: str) -> str:
    """Return the name of the shipped drafter of a model, given by name or as the directory of a shipped one.

    Raises:
        ConfigError: no shipped drafter was distilled from it.
    """
    model = model.removeprefix("hf:")
    name = next((known for known in names() if Path(model).resolve() == _HOME / known), model)
    for other in names():
        if card(other).objective == "distilled" and card(other).parent == name:
            return other
    raise ConfigError(f"No drafter is known for the model {model!r}.", "Name one with -o draft=MODEL.")


def method_of(model: str) -> str:
    """Return the method that the card of a shipped model, or of a directory that was trained here, names; "" = none."""
    if model in names():
        return card(model).method
    try:  # any directory may hold a file of that name
        return _fact((Path(model) / "card.md").read_text(encoding="utf-8", errors="replace"), "method")
    except OSError:
        return ""


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _fact(text: str, name: str) -> str:
    return _first(re.search(rf"^- {name}: (.+)$", text, flags=re.MULTILINE))


def _first(found: re.Match[str] | None) -> str:
    return found[1].strip() if found else ""
