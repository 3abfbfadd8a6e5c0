"""Couplets by rule: lines of public stories, two by two, whose last words rhyme.

There is little verse under an open licence, so lines are parts of sentences of TinyStories, and what makes two of them
a couplet is the rhyme by spelling (`outpace.text.rhymes`). Rhyme first, each line is told with its last word before it,
so that a model that writes from left to right chooses the rhyme, and then what leads to it:

    tree: The little bird sat in the tree
    see: It was the best that he could see

A line is paired with another of its rhyme that is drawn by a hash of the line, so that every run sees the same.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from outpace.text.rhymes import last_word, rhyme_by_spelling

from .sources import Source, held_out_stories, open_text, tiny_stories

__all__ = ["RHYME_FIRST", "VERSES", "couplets", "held_out_lines", "rhyme_first", "verse_lines"]

SIZES = (4, 9)  # words of a line
_PIECES = re.compile(r'[.!?;:,"\n]+')
_FILE = "tinystories/train.txt.gz"


def verse_lines(text: str) -> list[str]:
    """Return the parts of a text's sentences that can be lines, each once."""
    parts = (part.strip() for part in _PIECES.split(text))
    kept = [part for part in parts if SIZES[0] <= len(part.split()) <= SIZES[1] and part[-1].isalpha()]
    return list(dict.fromkeys(kept))


def couplets(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each line with another one of a rhyme, where there is one, in an order that mixes stories."""
    ending_with = defaultdict[str, list[str]](list)
    for line in lines:
        ending_with[last_word(line)].append(line)
    alike = defaultdict[str, list[str]](list)
    for word in sorted(ending_with):
        alike[rhyme_by_spelling(word)].append(word)
    known = [(word, line) for word, found in ending_with.items() if rhyme_by_spelling(word) for line in found]
    for word, line in sorted(known, key=lambda each: random.Random(each[1][::-1]).random()):
        generator, words = random.Random(line), alike[rhyme_by_spelling(word)]
        if len(words) > 1:
            # A word is drawn first, so that frequent ones do not stand behind all others.
            chosen = generator.choice([other for other in words if other != word])
            yield line, generator.choice(ending_with[chosen])


def rhyme_first(line: str) -> str:
    """Return a line behind its own last word."""
    return f"{last_word(line)}: {line}"


def held_out_lines(data: Path) -> list[str]:
    """Return lines of stories that no recipe trains on, those whose rhyme is told."""
    lines = verse_lines("\n".join(held_out_stories(data)))
    return [line for line in lines if rhyme_by_spelling(last_word(line))]


def _plain(data: Path) -> Iterator[str]:
    for pair in couplets(verse_lines(open_text(data / _FILE))):
        yield "".join(line + "\n" for line in pair)


def _first(data: Path) -> Iterator[str]:
    for pair in couplets(verse_lines(open_text(data / _FILE))):
        yield "".join(rhyme_first(line) + "\n" for line in pair)


VERSES: Source = replace(
    tiny_stories(), name="couplets", note="lines of stories, two by two by their rhyme", weight=1.0, read=_plain
)
RHYME_FIRST: Source = replace(
    VERSES, name="couplets-rhyme-first", note="the same couplets, each line behind its last word", read=_first
)
