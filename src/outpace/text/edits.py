"""Edits of a text as spans: where each begins and ends in the source, and what stands there instead.

Paper: Kaneko and Okazaki (2023), arXiv 2305.11862. A model that writes spans writes what changes and nothing else.
A text is cut into units, each a word or a mark with the blanks before it, so that joined they are the text again.

    spans = edit_spans("She go to school", "She goes to the school")
    write_spans(spans)    # "1 2 goes\\n3 3 the"
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from outpace.errors import ConfigError
from outpace.papers import Paper

__all__ = ["PAPERS", "Span", "apply_spans", "edit_spans", "read_spans", "realised", "units", "write_spans"]

PAPERS = (
    Paper(
        "Reducing Sequence Length by Predicting Edit Operations with Large Language Models",
        "Kaneko, Okazaki",
        2023,
        "2305.11862",
        186,
        "Instruction tuning of a large model on four tasks.",
        "outpace train correct-spans",
    ),
)
_UNIT = re.compile(r"\s*(?:\w+|[^\w\s])|\s+")
_LINE = re.compile(r"(\d+) (\d+)(?::(.*)|(\s.*))?", re.DOTALL)


class Span(NamedTuple):
    """One edit.

    Attributes:
        start: first unit of the source that goes.
        end: the unit behind the last; equal to `start` = something is put in before it.
        text: what stands there instead, blanks included.
    """

    start: int
    end: int
    text: str


def units(text: str) -> list[str]:
    """Cut a text into words and marks, each with the blanks before it, and blanks at the end; joined, they are it."""
    return _UNIT.findall(text)


def edit_spans(source: str, target: str) -> list[Span]:
    """Return edits that turn one text into another, in order and apart from each other; none where they are equal."""
    before, after = units(source), units(target)
    found = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return [Span(a, b, "".join(after[c:d])) for kind, a, b, c, d in found if kind != "equal"]


def apply_spans(source: str, spans: Sequence[Span]) -> str:
    """Return the source with its spans replaced.

    Raises:
        ConfigError: a span lies outside the source, or begins before another's end.
    """
    before, at, pieces = units(source), 0, list[str]()
    for span in spans:
        if not at <= span.start <= span.end <= len(before):
            raise ConfigError(
                f"The edit of units {span.start} to {span.end} does not fit behind unit {at} of {len(before)}.",
                "Give edits inside the source, in order.",
            )
        pieces += [*before[at : span.start], span.text]
        at = span.end
    return "".join([*pieces, *before[at:]])


def write_spans(spans: Sequence[Span]) -> str:
    """Return spans as text, one a line: start, end, and the replacement; a colon parts it where no blank does."""
    lines = []
    for start, end, text in spans:
        text = text.replace("\\", "\\\\").replace("\n", "\\n")
        lines.append(f"{start} {end}" + (text if not text or text[0].isspace() else ":" + text))
    return "\n".join(lines)


def read_spans(text: str) -> list[Span]:
    """Return the spans that `write_spans` wrote.

    Raises:
        ConfigError: a line is no span; it is named.
    """
    found = []
    for number, line in enumerate(text.split("\n") if text else [], 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ConfigError(f"Line {number} is no edit: {line!r}.", "Write START END and the replacement.")
        raw = match[3] if match[3] is not None else match[4] or ""
        unescaped = re.sub(r"\\(.)", lambda one: "\n" if one[1] == "n" else one[1], raw, flags=re.DOTALL)
        found.append(Span(int(match[1]), int(match[2]), unescaped))
    return found


def realised(source: str, written: str) -> str:
    """Return the text that a model meant which writes spans: edits that make no sense are left out."""
    kept = list[Span]()
    size = len(units(source))
    for line in written.split("\n"):
        try:
            spans = read_spans(line)
        except ConfigError:
            continue
        kept += [span for span in spans if (kept[-1].end if kept else 0) <= span.start <= span.end <= size]
    return apply_spans(source, kept)
