"""The published systems that work here: read from a generated file, so that nothing heavy is imported.

A class of methods says which papers it is (`Method.paper`, `Method.papers`); other modules that run a paper as
a recipe or a command, say so in `PAPERS`. `python -m outpace.methods.catalogue` gathers them in `papers.json`.
`titles.tsv` holds the titles of all systems of our catalogue by number, those that do not work here included.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpace.errors import ConfigError

__all__ = ["FILE", "Paper", "find", "papers", "titles"]

FILE = Path(__file__).with_name("papers.json")
_TITLES = Path(__file__).with_name("titles.tsv")


@dataclass(frozen=True, slots=True)
class Paper:
    """A published system that works here.

    Attributes:
        title: exactly as published.
        authors: first author and others, short.
        year: of the first public version.
        arxiv: identifier, or "".
        number: our catalogue number of the system; None = it has none.
        left_out: what of the paper is not built, one sentence, or "".
        command: shows it at work; "" = the method that declares it, on a model that ships with the package.
    """

    title: str
    authors: str
    year: int
    arxiv: str = ""
    number: int | None = None
    left_out: str = ""
    command: str = ""


def papers() -> list[dict[str, Any]]:
    """Return every published system that works here, by number, those without one last.

    Each entry has the fields of `Paper`, `runs` (what runs it, such as "method jacobi" or "recipe stories-mask") and
    `guarantee` (of the method under the settings of `command`, "" = no text is promised).
    """
    found: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def titles() -> dict[int, str]:
    """Return the title of every system of our catalogue, built or not, by number."""
    lines = _TITLES.read_text(encoding="utf-8").splitlines()
    return {int(number): title for number, title in (line.split("\t", 1) for line in lines)}


def find(wanted: str) -> list[dict[str, Any]]:
    """Return the systems with a number, or with a word in title, authors, arXiv id or what runs them.

    Raises:
        ConfigError: there is none; for a number of the catalogue, the sentence names the paper that does not work here.
    """
    if wanted.isdecimal() and len(wanted) < 4:  # longer ones are years
        found = [entry for entry in papers() if entry["number"] == int(wanted)]
    else:
        found = [entry for entry in papers() if _has(entry, wanted.lower())]
    if found:
        return found
    title = titles().get(int(wanted)) if wanted.isdecimal() else None
    what = f"No paper here has {wanted!r}." if title is None else f"Paper {wanted}, {title!r}, does not work here."
    raise ConfigError(what, "`outpace papers` lists those that do.")


def _has(entry: dict[str, Any], word: str) -> bool:
    return any(word in str(entry[name]).lower() for name in ("title", "authors", "year", "arxiv", "runs"))
