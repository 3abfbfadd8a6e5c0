"""The public texts behind the zoo: where each comes from, under which licence, and how it is read.

Nothing here is needed to run or test Outpace: the trained weights ship. To train again, gather the files named in
`SOURCES` into one folder (the layout is in each source's `files`) and pass it as `--data`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from outpace.errors import ConfigError
from outpace.tasks import training_examples
from outpace.tasks.lists import LISTS
from outpace.tasks.planning import PLANNING, countdown_prompt, sudoku_prompt

DocumentReader = Callable[[Path], Iterator[str]]
END = "<|endoftext|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicText:
    """Where a public text comes from.

    Attributes:
        name: Short name, as in the cards.
        origin: Where anyone can get the same.
        licence: Its licence.
        note: What of it is used.
    """

    name: str
    origin: str
    licence: str
    note: str

    def paths(self, names: Sequence[str], data: Path) -> list[Path]:
        """Return where files of it lie.

        Raises:
            ConfigError: One is missing.
        """
        for name in names:
            if not (data / name).is_file():
                hint = f"Get it from {self.origin} ({self.licence})."
                raise ConfigError(f"the training text {name} is missing in {data}", hint)
        return [data / name for name in names]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source(PublicText):
    """One public text that a recipe trains on.

    Attributes:
        files: Paths inside the data folder; empty for Python's own library, which is read from the interpreter.
        weight: Share of the training tokens drawn from it; the shares of all sources sum to 1.
        read: Yields the training documents, given the data folder.
    """

    files: tuple[str, ...]
    weight: float
    read: DocumentReader


def open_text(path: Path) -> str:
    """Text of a plain or gzipped UTF-8 file, line ends made "\\n"."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return raw.decode("utf-8", errors="replace").replace("\r\n", "\n")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a plain or gzipped JSONL file; cut at "\\n" alone, since texts may hold other separators."""
    for line in open_text(path).split("\n"):
        if line.strip():
            yield json.loads(line)


def _stories(name: str) -> DocumentReader:
    def read(data: Path) -> Iterator[str]:
        for story in open_text(data / "tinystories" / name).split(END):
            if story.strip():
                yield story.strip() + "\n"

    return read


def _running_stories(data: Path) -> Iterator[str]:
    # Story borders are not marked in this file, so it is cut into pieces at paragraph ends.
    paragraphs = open_text(data / "tinystories/official_validation_head.txt").split("\n")
    for start in range(0, len(paragraphs), 40):
        piece = "\n".join(paragraphs[start : start + 40]).strip()
        if piece:
            yield piece + "\n"


CLASSIC_BYTES = 5_000_000


def _classic(data: Path) -> Iterator[str]:
    # Up to 120 kB of each book rather than a few whole ones: more authors in the same number of bytes.
    taken = 0
    for book in read_jsonl(data / "classic_stories/train.jsonl.gz"):
        text = str(book["text"])[:120_000]
        taken += len(text)
        yield text + "\n"
        if taken > CLASSIC_BYTES:
            return


def gsm8k_document(row: dict[str, Any]) -> str:
    """One worked problem as plain text (without the `<<...>>` calculator notes)."""
    answer = "".join(part.split(">>")[-1] for part in str(row["answer"]).split("<<"))
    return f"Question: {row['question']}\nAnswer: {answer}\n"


def _gsm8k(data: Path) -> Iterator[str]:
    return map(gsm8k_document, read_jsonl(data / "gsm8k/train.jsonl.gz"))


def mbpp_document(row: dict[str, Any]) -> str:
    """One MBPP problem as a Python file: the task as docstring, the code, the tests."""
    code = "\n".join(line.rstrip() for line in str(row["code"]).replace("\r\n", "\n").replace("\t", "    ").split("\n"))
    return f'"""{row["text"]}"""\n\n{code}\n\n' + "\n".join(row["test_list"]) + "\n"


def _mbpp(data: Path) -> Iterator[str]:
    # The published test split (task ids 11 to 510) is held out.
    return (mbpp_document(row) for row in read_jsonl(data / "mbpp/mbpp.jsonl") if row["split"] != "test")


SKIPPED_DIRS = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "encodings", "pydoc_data", "__pycache__"}
)


def library_files() -> list[tuple[str, Path]]:
    """Python files of the running interpreter's standard library: (relative path, path), sorted.

    Tests, big tables and IDLE are skipped.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if not SKIPPED_DIRS.intersection(relative.parts) and "-linux-" not in str(relative):
            found.append((relative.as_posix(), path))
    return sorted(found)


def is_held_out(relative: str) -> bool:
    """Whether a library file is kept for measuring: about 4% of files, by a hash of the relative path."""
    return hashlib.sha256(relative.encode()).digest()[0] < 10


def library_text(path: Path) -> str:
    """Text of one library file, line ends made "\\n"."""
    return path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")


def _library(data: Path) -> Iterator[str]:
    return (library_text(path) for relative, path in library_files() if not is_held_out(relative))


def held_out_library() -> list[tuple[str, str]]:
    """Held-out library files of a useful size: (relative path, text)."""
    texts = [(relative, library_text(path)) for relative, path in library_files() if is_held_out(relative)]
    return [(relative, text) for relative, text in texts if len(text) > 200]


def tiny_stories() -> Source:
    """Return the stories that every text model of the zoo is trained on."""
    return next(source for source in SOURCES if source.name == "tinystories")


def _english(data: Path) -> Iterator[str]:
    """Yield the English sentences that translators are trained on, each once."""
    with gzip.open(data / _ENGLISH, "rt", encoding="utf-8") as lines:
        yield from dict.fromkeys(line.split("\t")[0].strip() for line in lines)


def held_out_english(data: Path) -> list[str]:
    """Sentences of Tatoeba, each once, that `TATOEBA_ENGLISH` does not hold."""
    known = set(_english(data))
    with gzip.open(data / _ENGLISH.replace("train", "valid"), "rt", encoding="utf-8") as lines:
        found = dict.fromkeys(line.split("\t")[0].strip() for line in lines)
    return [text for text in found if text not in known]


_ENGLISH = "tatoeba_pairs/en-de.train.tsv.gz"
TATOEBA_ENGLISH = Source(
    name="tatoeba-english",
    files=(_ENGLISH,),
    origin="tatoeba.org through www.manythings.org/anki, the copy in github.com/rioyshky/translation",
    licence="CC-BY-2.0",
    note="the English side of the training pairs",
    weight=1.0,
    read=_english,
)


def held_out_stories(data: Path) -> list[str]:
    """The stories of TinyStories that no recipe trains on."""
    return list(_stories("valid.txt")(data))


_TINY = (
    "TinyStories by R. Eldan and Y. Li (huggingface.co/datasets/roneneldan/TinyStories), samples of it in "
    "github.com/gusjengis/toy-RNN, mines-opt-ml/decoding-gpt, Arnoochka/Transformer-Parallelism and "
    "yuninxia/moe-routing-bench"
)
SOURCES: tuple[Source, ...] = (
    Source(
        name="python-library",
        files=(),
        origin="Lib/ of CPython, the running interpreter, github.com/python/cpython",
        licence="PSF-2.0",
        note="without tests, IDLE, lib2to3, codecs and tables; about 4% of files held out by hash",
        weight=0.42,
        read=_library,
    ),
    Source(
        name="mbpp",
        files=("mbpp/mbpp.jsonl",),
        origin="Mostly Basic Python Problems, github.com/google-research/google-research/tree/master/mbpp",
        licence="CC-BY-4.0",
        note="all but the published test split",
        weight=0.03,
        read=_mbpp,
    ),
    Source(
        name="tinystories",
        files=("tinystories/train.txt.gz",),
        origin=_TINY,
        licence="CDLA-Sharing-1.0",
        note="3,742 stories, de-duplicated",
        weight=0.25,
        read=_stories("train.txt.gz"),
    ),
    Source(
        name="tinystories-running",
        files=("tinystories/official_validation_head.txt",),
        origin=_TINY,
        licence="CDLA-Sharing-1.0",
        note="head of the official validation split",
        weight=0.05,
        read=_running_stories,
    ),
    Source(
        name="tinystories-lowercase",
        files=("tinystories/train_more_lowercase.txt.gz",),
        origin=_TINY,
        licence="CDLA-Sharing-1.0",
        note="2,336 stories in lower case",
        weight=0.02,
        read=_stories("train_more_lowercase.txt.gz"),
    ),
    Source(
        name="gsm8k",
        files=("gsm8k/train.jsonl.gz",),
        origin="github.com/openai/grade-school-math",
        licence="MIT",
        note="training split, calculator notes removed",
        weight=0.10,
        read=_gsm8k,
    ),
    Source(
        name="classic-stories",
        files=("classic_stories/train.jsonl.gz",),
        origin="github.com/mlschmitt/classic-books-markdown and github.com/teropa/nlp",
        licence="public domain (USA)",
        note="the first 120 kB of each book, 5 MB in all",
        weight=0.13,
        read=_classic,
    ),
)

LIST_EXAMPLES = 10_000
PUZZLES = {"countdown-3": 8_000, "countdown-4": 4_000, "sudoku": 14_000}
_PLANNING_FILES = (
    *(f"planning/cd{numbers}_test.jsonl" for numbers in (3, 4)),
    *(f"planning/sudoku_4x4_{clues}.jsonl" for clues in range(4, 13)),
)


def _lists(data: Path) -> Iterator[str]:
    # One task after the other: a row of the stream then holds one kind only, so no task order can be learnt.
    for name in LISTS:
        yield from (example.prompt + example.answer for example in training_examples(name, LIST_EXAMPLES))


def copied_lists() -> Source:
    """Return the simplest of the list tasks alone: lists to copy."""
    whole = next(source for source in MIXED_SOURCES if source.name == "list-tasks")
    note = "lists of three to six words to copy; about 4% of the prompts held out by hash"
    return replace(whole, name="list-copies", note=note, weight=1.0, read=_copies)


def _copies(data: Path) -> Iterator[str]:
    return (example.prompt + example.answer for example in training_examples("copy", LIST_EXAMPLES))


def _planning(data: Path) -> Iterator[str]:
    known = set[str]()
    for name in _PLANNING_FILES:
        prompt = sudoku_prompt if "sudoku" in name else countdown_prompt
        known |= {prompt(str(row["input"])) for row in read_jsonl(data / name)}
    for name in PLANNING:
        for example in training_examples(name, PUZZLES[name]):
            if example.prompt not in known:
                yield example.prompt + example.answer


def _written(data: Path) -> Iterator[str]:
    """Yield whole texts as they are; those cut short six at a time, to their last sentence: few then feign an end."""
    parts: list[str] = []
    for row in read_jsonl(data / WRITTEN):
        text = str(row["text"])
        if _loops(text):
            continue
        if row["is_whole"]:
            yield text.strip() + "\n"
            continue
        end = max(text.rfind(mark) for mark in (". ", "! ", "? ", '." ', '!" '))
        parts.append(text[: end + 2].strip() if end > 0 else text.strip())
        if len(parts) == 6:
            yield "\n\n".join(parts) + "\n"
            parts = []


def _loops(text: str, size: int = 6) -> bool:
    """Whether six words in a row come again: a greedy parent that is stuck."""
    words = text.split()
    runs = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
    return len(set(runs)) < len(runs)


WRITTEN = "written/stories-greedy.jsonl"
_SHARES = {
    "python-library": 0.08,
    "mbpp": 0.01,
    "tinystories": 0.20,
    "tinystories-running": 0.04,
    "tinystories-lowercase": 0.01,
    "gsm8k": 0.03,
    "classic-stories": 0.03,
}
# Mostly stories and tasks: a small diffusion model learns a narrow text better than a broad one.
MIXED_SOURCES: tuple[Source, ...] = (
    *(replace(source, weight=_SHARES[source.name]) for source in SOURCES),
    Source(
        name="list-tasks",
        files=(),
        origin="outpace.tasks, generated",
        licence="Apache-2.0",
        note="eight tasks on lists of three to six words; about 4% of the prompts held out by hash",
        weight=0.17,
        read=_lists,
    ),
    Source(
        name="planning",
        files=_PLANNING_FILES,
        origin="outpace.tasks, generated; the files are those of github.com/DreamLM/Dream (Apache-2.0), read only to "
        "leave their puzzles out",
        licence="Apache-2.0",
        note="Countdown with three and four numbers, 4x4 Sudoku; about 4% of the puzzles held out by hash",
        weight=0.08,
        read=_planning,
    ),
    Source(
        name="stories-written",
        files=(WRITTEN,),
        origin="written greedily by `stories` from beginnings of TinyStories (outpace.train.written)",
        licence="CDLA-Sharing-1.0",
        note="sequence-level distillation, for places that can be written together; loops left out",
        weight=0.35,
        read=_written,
    ),
)
