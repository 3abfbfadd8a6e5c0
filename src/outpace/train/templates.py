"""Sentences as templates: what is read are numbered words, what is written is the text with the numbers in their place.

    "<0> park <1> dog"  ->  "The big <1> ran through the <0>."

Words are numbered in an order drawn by a hash of the text, since those who ask for words do not know where they stand.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

from outpace.laws.template import MOST, placeholder, template_source

from .keywords import COMMON, STORIES
from .pairs import Pair, PairSource

__all__ = ["TEMPLATES", "as_template"]


def as_template(words: Sequence[str], text: str) -> Pair | None:
    """Return a text as a pair of numbered words and template; None where the words do not stand there in their order.

    Args:
        words: of the text, in its order, up to `MOST`.
        text: the sentence.
    """
    numbers = list(range(len(words)))
    random.Random(text).shuffle(numbers)
    if len(set(words)) < len(words) or len(words) > MOST:
        return None
    written, at = "", 0
    for word, number in zip(words, numbers, strict=True):
        found = re.compile(rf"(?<![\w'-]){re.escape(word)}(?![\w'-])").search(text, at)
        if found is None:
            return None
        written += text[at : found.start()] + placeholder(number)
        at = found.end()
    ordered = [word for _, word in sorted(zip(numbers, words, strict=True))]
    return template_source(ordered), written + text[at:]


def _templates(source: PairSource, paths: Sequence[Path]) -> list[Pair]:
    made = (as_template(words.split()[:MOST], text) for words, text in source.read(paths))
    return [pair for pair in made if pair is not None]


TEMPLATES = PairSource(
    name="story-templates",
    splits={
        "train": (*STORIES.splits["train"], *COMMON.splits["train"]),
        "valid": (*STORIES.splits["valid"], *COMMON.splits["valid"]),
    },
    origin=f"{STORIES.origin}; {COMMON.origin}",
    licence=f"{STORIES.licence}, {COMMON.licence}",
    note="sentences with one to six of their words numbered",
    read=lambda paths: [*_templates(STORIES, paths[:1]), *_templates(COMMON, paths[1:])],
    languages=("words", "template"),
    tags=tuple(placeholder(number) for number in range(MOST)),
    is_spaced=True,
)
