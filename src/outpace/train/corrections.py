"""Correction pairs from clean public English: a sentence with mistakes made by rule, and the sentence itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

from outpace.text.edits import edit_spans, write_spans

from .mistakes import make_mistakes, swap_words
from .pairs import Pair, PairSource
from .sources import open_text, read_jsonl

__all__ = ["CORRECTIONS", "CORRECTION_SPANS", "FEW_CORRECTIONS", "REORDERED", "clean_sentences", "correction_pairs"]

_LONGEST = 110  # characters: a sentence that a small model can hold
_SENTENCE = re.compile(r"(?<=[.!?]\s)[A-Z][^.!?\n\"“”*#_\[\]]{12,}(?<!Mr)(?<!Mrs)(?<!Dr)(?<!St)[.!?](?=\s)")
_PER_BOOK = 400  # sentences of a book, evenly spread
_DRAWS = 2  # mistakes are drawn this often for each sentence
_PLAIN = str.maketrans("\u2018\u2019", "''")


def correction_pairs(sentences: Sequence[str], seed: int, draws: int = 1) -> list[Pair]:
    """Return pairs (with mistakes, clean); which mistakes depends on seed, draw and sentence alone."""
    return [
        (make_mistakes(sentence, Random(f"{seed}:{draw}:{sentence}")), sentence)
        for draw in range(draws)
        for sentence in sentences
    ]


def clean_sentences(path: Path) -> Iterator[str]:
    """Yield the English sentences of a file: the first column of a table, or sentences of books and problems."""
    if ".tsv" in path.suffixes:
        yield from (line.split("\t")[0].strip() for line in open_text(path).rstrip("\n").split("\n"))
        return
    for row in read_jsonl(path):
        found = _SENTENCE.findall(str(row.get("text") or row.get("question")) + " ")
        step = max(1, len(found) // _PER_BOOK)
        yield from (" ".join(sentence.split()) for sentence in found[::step])


def _unique(paths: Sequence[Path]) -> list[str]:
    found = dict.fromkeys(sentence.translate(_PLAIN) for path in paths for sentence in clean_sentences(path))
    return [sentence for sentence in found if sentence.isascii() and 1 < len(sentence) <= _LONGEST]


def _read(paths: Sequence[Path], draws: int = _DRAWS) -> list[Pair]:
    """Return training pairs where training files are among the paths, else those of the held-out files."""
    taught = [path for path in paths if "train" in path.name]
    if not taught:
        return correction_pairs(_unique(paths), 1)
    # The held-out sentences of one language pair may be among the training sentences of the other.
    held = {sentence for path in paths if path not in taught for sentence in _unique([path])}
    return correction_pairs([sentence for sentence in _unique(taught) if sentence not in held], 0, draws)


_TATOEBA = {split: f"tatoeba_pairs/en-de.{split}.tsv.gz" for split in ("train", "valid", "test")}
CORRECTIONS = PairSource(
    name="corrections",
    splits={
        "train": (
            *_TATOEBA.values(),
            "tatoeba_pairs/en-fr.train.tsv.gz",
            "classic_stories/train.jsonl.gz",
            "gsm8k/train.jsonl.gz",
        ),
        "valid": (_TATOEBA["valid"],),
        "test": (_TATOEBA["test"],),
    },
    origin="English sentences of tatoeba.org through www.manythings.org/anki (CC-BY-2.0), of books from "
    "github.com/mlschmitt/classic-books-markdown (public domain) and of github.com/openai/grade-school-math (MIT)",
    licence="CC-BY-2.0, MIT and public domain",
    note="clean sentences; the mistakes are made by rule (outpace.train.mistakes)",
    read=_read,
    languages=("wrong", "right"),
)


def _few(paths: Sequence[Path]) -> list[Pair]:
    return _read(paths, draws=1)


def _reordered(paths: Sequence[Path]) -> list[Pair]:
    return [(swap_words(wrong, Random(wrong)), right) for wrong, right in _few(paths)]


def _spans(paths: Sequence[Path]) -> list[Pair]:
    return [(wrong, write_spans(edit_spans(wrong, right))) for wrong, right in _few(paths)]


FEW_CORRECTIONS = replace(
    CORRECTIONS,
    name="corrections-few",
    splits={**CORRECTIONS.splits, "train": tuple(_TATOEBA.values())},
    origin="English sentences of tatoeba.org through www.manythings.org/anki",
    licence="CC-BY-2.0",
    read=_few,
)
REORDERED = replace(
    FEW_CORRECTIONS,
    name="corrections-reordered",
    note=CORRECTIONS.note + "; in some sentences two neighbouring words have changed places",
    read=_reordered,
)
CORRECTION_SPANS = replace(
    FEW_CORRECTIONS,
    name="correction-spans",
    note=CORRECTIONS.note + "; the targets are edit spans (outpace.text.edits)",
    read=_spans,
)
