"""Stories as pairs: three sentences at a time, whole, or with the middle one missing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from outpace.train.data import MASK
from outpace.train.pairs import Pair, PairSource
from outpace.train.sources import END, open_text, tiny_stories

__all__ = ["STORY_GAPS", "STORY_NEXT", "STORY_PASSAGES", "gaps", "passages"]

_BORDER = re.compile(r'(?<=[.!?"])\s+')
_MOST_WORDS, _HELD_OUT = 16, 400


def passages(stories: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield three sentences after three of each story, where the middle one has some words and none is long."""
    for story in stories:
        sentences = [sentence for sentence in _BORDER.split(story.strip()) if sentence]
        for start in range(0, len(sentences) - 2, 3):
            first, middle, last = sentences[start : start + 3]
            if len(middle.split()) >= 4 and max(len(part.split()) for part in (first, middle, last)) <= _MOST_WORDS:
                yield first, middle, last


def gaps(stories: Sequence[str]) -> list[Pair]:
    """Return pairs of a passage with a mask in place of its middle sentence, and that sentence."""
    return [(f"{first}{MASK} {last}", middle) for first, middle, last in passages(stories)]


def _stories(paths: Sequence[Path]) -> list[str]:
    return [story for path in paths for story in open_text(path).split(END)]


def _read_gaps(paths: Sequence[Path]) -> list[Pair]:
    pairs = gaps(_stories(paths))
    return pairs[:_HELD_OUT] if paths[0].name.startswith("valid") else pairs


def _read_passages(paths: Sequence[Path]) -> list[Pair]:
    whole = [" ".join(parts) for parts in passages(_stories(paths))]
    return [(text, text) for text in whole]


def _read_next(paths: Sequence[Path]) -> list[Pair]:
    pairs = [(first, f"{middle} {last}") for first, middle, last in passages(_stories(paths))]
    return pairs[:_HELD_OUT] if paths[0].name.startswith("valid") else pairs


STORY_GAPS = PairSource(
    name="story-gaps",
    splits={"train": ("tinystories/train.txt.gz",), "valid": ("tinystories/valid.txt",)},
    origin=tiny_stories().origin,
    licence=tiny_stories().licence,
    note="three sentences, of which the middle one is to be written",
    read=_read_gaps,
    languages=("gap", "sentence"),
)
STORY_PASSAGES = PairSource(
    name="story-passages",
    splits=STORY_GAPS.splits,
    origin=STORY_GAPS.origin,
    licence=STORY_GAPS.licence,
    note="three sentences at a time",
    read=_read_passages,
    languages=("text", "same"),
)
STORY_NEXT = PairSource(
    name="story-next",
    splits=STORY_GAPS.splits,
    origin=STORY_GAPS.origin,
    licence=STORY_GAPS.licence,
    note="a sentence, and the two that follow it",
    read=_read_next,
    languages=("sentence", "following"),
)
