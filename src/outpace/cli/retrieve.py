"""`outpace retrieve`: passages for a query, by what a model writes of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outpace.cli.options import DeviceName, DtypeName, ModelName
from outpace.cli.output import print_json, write_text
from outpace.cli.values import Device, Dtype
from outpace.errors import ConfigError

if TYPE_CHECKING:
    from outpace.api.passages import PassageFinder
    from outpace.retrieve.ngrams import Found

__all__ = ["read_passages", "retrieve"]

_SHOWN = 160  # characters of a passage
_NGRAMS = 5


def retrieve(
    query: Annotated[str, typer.Argument(help="What to look for.")],
    corpus: Annotated[
        list[Path], typer.Option(help="Text files (a passage between empty lines), folders, or .jsonl files (repeat).")
    ],
    model: ModelName = "stories",
    count: Annotated[int, typer.Option(min=1, help="Passages to show.")] = 10,
    beams: Annotated[int, typer.Option(help="N-grams written side by side, an even number.")] = 24,
    length: Annotated[int, typer.Option(help="Tokens of each.")] = 8,
    prompt: Annotated[str | None, typer.Option(help="What the model continues; {query} is the query.")] = None,
    dtype: DtypeName = Dtype.AUTO,
    device: DeviceName = Device.AUTO,
    json: Annotated[bool, typer.Option("--json", help="Print one object a line.")] = False,
) -> None:
    """Find passages of a corpus for a query.

    The model writes n-grams that it expects in an answer, and can write only such as the corpus holds; passages are
    ranked by the n-grams that stand in them. No training, no vectors: any causal model is a search engine.
    """
    passages = read_passages(corpus)
    from outpace.api.engine import load
    from outpace.api.passages import PROMPT, PassageFinder

    lm = load(model, dtype=dtype.value, device=device.value)
    finder = PassageFinder(lm, passages, PROMPT if prompt is None else prompt, beams, length)
    for place, found in enumerate(finder.find(query, count), 1):
        told = _told(finder, found, passages)
        print_json(told) if json else write_text(_lines(place, told))


def read_passages(files: list[Path]) -> list[str]:
    """Return the passages of a corpus: each text of a .jsonl file, and what stands between empty lines elsewhere.

    Raises:
        ConfigError: there is none, or a file cannot be read.
    """
    from outpace.draft.corpus import read_texts

    skipped, found = list[Path](), list[str]()
    for path in files:
        is_whole = path.suffix == ".jsonl"
        for text in read_texts([path], skipped):
            found += [text] if is_whole else re.split(r"\n\s*\n", text)
    found = [text.strip() for text in found if text.strip()]
    if not found:
        raise ConfigError("The corpus holds no text.", "Give files with text in them.")
    return found


def _told(finder: PassageFinder, found: Found, passages: list[str]) -> dict[str, Any]:
    spelled = [{"text": finder.decode(one.tokens), "weight": one.weight} for one in found.ngrams[:_NGRAMS]]
    return {"passage": found.number, "score": found.score, "ngrams": spelled, "text": passages[found.number]}


def _lines(place: int, told: dict[str, Any]) -> str:
    text = " ".join(told["text"].split())
    short = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
    ngrams = ", ".join(repr(one["text"]) for one in told["ngrams"])
    return f"{place}. passage {told['passage']}, score {told['score']:.1f}: {short}\n   {ngrams}\n"
