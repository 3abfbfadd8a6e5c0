"""Texts with words that they must hold, as pairs: what is read and given, and the text.

A source is a line that `outpace.models.nar.sketch` reads: words, phrases between bars, a double bar behind what is only
read. Words are drawn by a hash of the text, so that every run sees the same.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .pairs import Pair, PairSource
from .sources import END, open_text, read_jsonl

__all__ = [
    "COMMON",
    "DIALOGUES",
    "GAPS",
    "PATHS",
    "RESTAURANTS",
    "SETS",
    "STORIES",
    "TABLES",
    "star_graphs",
    "table_values",
]

BARS = ("|", "||")
_WORD = re.compile(r"(?<![\w'])[A-Za-z]+(?![\w'])")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_CDLA = "CDLA-Sharing-1.0"
_STORIES_ORIGIN = "TinyStories by R. Eldan and Y. Li (huggingface.co/datasets/roneneldan/TinyStories)"


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeSource(PairSource):
    """Pairs that are made, not read.

    Attributes:
        make: returns the pairs of a split.
    """

    make: Callable[[str], list[Pair]]

    def pairs(self, data: Path, split: str, direction: str = "") -> list[Pair]:
        """Return the pairs of a split; see `PairSource.pairs`."""
        del data, direction
        return self.make(split)


def sentences(path: Path) -> Iterator[str]:
    """Yield every second sentence of a file of stories, and every fourth one with the next, of up to 160 characters."""
    for story in open_text(path).split(END):
        found = [line for line in _SENTENCE.split(" ".join(story.split())) if '"' not in line and "|" not in line]
        for at, line in enumerate(found):
            texts = [line] if at % 2 == 0 else []
            texts += [" ".join(found[at : at + 2])] if at % 4 == 0 else []
            yield from (text for text in texts if 12 <= len(text) <= 160)


def _drawn(text: str, rarity: dict[str, float], most: int) -> list[str]:
    """Return words of a text in its order, rare ones rather; at most a third of them."""
    words = _WORD.findall(text)
    generator = random.Random(text)
    num = min(generator.randint(1, most), max(1, len(words) // 3))
    keyed = sorted(range(len(words)), key=lambda at: generator.random() ** (1 / rarity[words[at]]), reverse=True)
    return [words[at] for at in sorted(keyed[:num])]


def _story_words(paths: Sequence[Path]) -> list[Pair]:
    texts = [text for path in paths for text in sentences(path)]
    counts = Counter(word for text in texts for word in _WORD.findall(text))
    rarity = {word: 1 / (1 + count / 20) for word, count in counts.items()}
    return [(" ".join(_drawn(text, rarity, 5)), text) for text in texts if _WORD.search(text)]


def _story_gaps(paths: Sequence[Path]) -> list[Pair]:
    """Return texts with one or two gaps: what is left stands between bars."""
    found = list[Pair]()
    for text in (text for path in paths for text in sentences(path)):
        words, generator = text.split(" "), random.Random(text)
        if len(words) < 6:
            continue
        first = generator.randint(1, len(words) - 3)
        last = generator.randint(first + 1, len(words) - 1)
        found.append((" ".join(words[:first]) + "|" + " ".join(words[last:]), text))
    return found


def _concepts(paths: Sequence[Path]) -> list[Pair]:
    """Return sentences with those of their words that come of their concepts, in the sentence's order."""
    found = list[Pair]()
    for row in (row for path in paths for row in read_jsonl(path)):
        for text in map(str, row["refs"]):
            words = _WORD.findall(text)
            given = [word for word in words if any(word.lower().startswith(stem[:4]) for stem in row["concepts"])]
            if given and "|" not in text:
                found.append((" ".join(given[:8]), " ".join(text.split())))
    return found


def _tidy(text: str) -> str:
    return re.sub(r" ([.,!?'])", r"\1", " ".join(text.split()))


def _tables(paths: Sequence[Path]) -> Iterator[tuple[dict[str, str], str]]:
    for row in (row for path in paths for row in read_jsonl(path)):
        for text in row["refs"] if "refs" in row else [row["ref_tokenised"]]:
            if "|" not in str(text):
                yield row["mr"], _tidy(str(text))


def _entities(paths: Sequence[Path]) -> list[Pair]:
    """Return descriptions with the values of their table that stand there as they are, between bars, in their order."""
    found = list[Pair]()
    for table, text in _tables(paths):
        at, values = 0, list[str]()
        places = sorted((text.find(value), value) for value in table.values() if value not in ("yes", "no"))
        for place, value in places:
            if place >= at and _stands(text, place, value):
                values.append(value)
                at = place + len(value)
        if values:
            found.append(("|".join(values) + "|" * (len(values) == 1), text))
    return found


def _stands(text: str, at: int, value: str) -> bool:
    border = text[at + len(value) : at + len(value) + 1]
    return at >= 0 and (at == 0 or text[at - 1] == " ") and not (border.isalnum() or (border in "-'" and border != ""))


def _skeletons(paths: Sequence[Path]) -> list[Pair]:
    return [(", ".join(f"{name} {value}" for name, value in table.items()), text) for table, text in _tables(paths)]


def table_values(source: str) -> list[str]:
    """Return the values of a written table that a text tells in the same words; none where it is no table."""
    found = re.findall(r"(?:^|, )(?:name|eatType|food|area|near) ([^,|]+)", source)
    return found if source.startswith("name ") else []


def _turns(paths: Sequence[Path]) -> list[Pair]:
    """Return what a user said and what the system answered, where both are short."""
    found = list[Pair]()
    for row in (row for path in paths for row in read_jsonl(path)):
        turns = [(turn["s"], " ".join(str(turn["t"]).split())) for turn in row["turns"]]
        for (_, said), (who, answer) in itertools.pairwise(turns):
            if who == "S" and "|" not in said + answer and len(said) <= 100 and 12 <= len(answer) <= 100:
                found.append((said, answer))
    return found[::3]  # turns of one dialogue are much alike


def star_graphs(count: int, seed: int, arms: int = 3, length: int = 3) -> list[Pair]:
    """Return paths of stars: edges in any order and both ends are read, the way from the centre to the end is written.

    An edge is a word of two letters, so that it is one token, and no network has to find out first what stands side by
    side.

    Args:
        count: pairs.
        seed: of the draws.
        arms: paths that leave the centre.
        length: edges of each.
    """
    generator, letters = random.Random(seed), "abcdefghijkl"
    found = list[Pair]()
    for _ in range(count):
        nodes = generator.sample(letters, arms * length + 1)
        paths = [[nodes[0], *nodes[1 + arm * length : 1 + (arm + 1) * length]] for arm in range(arms)]
        edges = [edge for path in paths for edge in itertools.pairwise(path)]
        generator.shuffle(edges)
        path = paths[generator.randrange(arms)]
        read = " ".join(a + b for a, b in edges)
        found.append((f"{read}||{path[0]} {path[-1]}", " ".join(path)))
    return found


def _stars(split: str) -> list[Pair]:
    return star_graphs(*{"train": (20_000, 0), "valid": (300, 1), "test": (300, 2)}[split])


def _stories(name: str, note: str, read: Callable[[Sequence[Path]], list[Pair]]) -> PairSource:
    return PairSource(
        name=name,
        splits={"train": ("tinystories/train.txt.gz",), "valid": ("tinystories/valid.txt",)},
        origin=_STORIES_ORIGIN,
        licence=_CDLA,
        note=note,
        read=read,
        languages=("words", "en"),
        tags=BARS,
        is_spaced=True,
    )


def _restaurants(name: str, note: str, read: Callable[[Sequence[Path]], list[Pair]]) -> PairSource:
    return PairSource(
        name=name,
        splits={"train": ("e2e_nlg/train_tokenised.jsonl.gz",), "valid": ("e2e_nlg/dev.jsonl.gz",)},
        origin="github.com/tuetschek/e2e-dataset and github.com/harvardnlp/neural-template-gen",
        licence="CC-BY-SA-4.0",
        note=note,
        read=read,
        languages=("table", "en"),
        tags=BARS,
        is_spaced=True,
    )


STORIES = _stories("stories-words", "sentences, and one to five of their words", _story_words)
GAPS = _stories("stories-gaps", "sentences with a gap", _story_gaps)
RESTAURANTS = _restaurants("restaurants-entities", "descriptions, and values that stand in them", _entities)
TABLES = _restaurants("restaurants-tables", "tables and their descriptions", _skeletons)
COMMON = PairSource(
    name="commongen-words",
    splits={"train": ("commongen/train.jsonl.gz",), "valid": ("commongen/dev.jsonl.gz",)},
    origin="github.com/INK-USC/CommonGen",
    licence="MIT",
    note="sentences, and those of their words that come of the concepts",
    read=_concepts,
    languages=("words", "en"),
    tags=BARS,
    is_spaced=True,
)
DIALOGUES = PairSource(
    name="dialogue-turns",
    splits={"train": ("sgd_dialogues/train.jsonl.gz",), "valid": ("sgd_dialogues/dev.jsonl.gz",)},
    origin="github.com/google-research-datasets/dstc8-schema-guided-dialogue",
    licence="CC-BY-SA-4.0",
    note="short questions and answers",
    read=_turns,
    languages=("user", "system"),
    tags=BARS,
    is_spaced=True,
)
PATHS = MadeSource(
    name="star-paths",
    splits={"train": (), "valid": (), "test": ()},
    origin="made here, after Bachmann and Nagarajan (2024), arXiv 2403.06963",
    licence="Apache-2.0",
    note="the way from the centre of a star to one of its ends",
    read=lambda _: [],
    make=_stars,
    languages=("graph", "path"),
    tags=BARS,
    is_spaced=True,
)
SETS: dict[str, PairSource] = {
    source.name: source for source in (STORIES, GAPS, RESTAURANTS, TABLES, COMMON, DIALOGUES, PATHS)
}
