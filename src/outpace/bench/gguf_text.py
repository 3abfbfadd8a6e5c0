"""How many lines of text a GGUF file's tokenizer cuts as llama.cpp does, and the first lines where it does not.

    python -m outpace.bench.gguf_text model.gguf --lines text.txt

It needs llama-cpp-python (`llama_cpp`), which nothing else in this process does. Special tokens are read in both.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from outpace.bench.command import new_parser, run_command
from outpace.errors import ConfigError
from outpace.text.tokenizer import Tokenizer

__all__ = ["Cut", "compare", "llama_cpp", "main", "read_lines"]

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Cut:
    """A text that was cut otherwise: the tokens of both from the first that differs."""

    text: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]


def llama_cpp() -> Any:
    """Return the module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("llama_cpp")
    except ImportError:
        raise ConfigError("llama_cpp cannot be imported.", "pip install llama-cpp-python") from None


def read_lines(paths: Sequence[Path], limit: int) -> list[str]:
    """Return the first lines that are not empty, of plain or gzipped files."""

    def lines() -> Iterator[str]:
        for path in paths:
            opened = gzip.open if path.suffix == ".gz" else open
            with opened(path, "rt", encoding="utf-8", newline="\n") as file:
                yield from (line.rstrip("\n") for line in file if line.strip())

    try:
        return list(islice(lines(), limit))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The lines cannot be read: {error}.", "Give files of UTF-8 text.") from None


def compare(tokenizer: Tokenizer, encode: Callable[[str], list[int]], lines: Sequence[str]) -> list[Cut]:
    """Return the lines that another tokenizer of the same vocabulary cuts otherwise."""
    found = []
    for line in lines:
        ours, theirs = tokenizer.encode(line, is_special=False), encode(line)
        if ours != theirs:
            same = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
            start = min(len(ours), len(theirs)) if same is None else same
            found.append(Cut(line, *(tuple(map(tokenizer.token, ids[start : start + 8])) for ids in (ours, theirs))))
    return found


def _work(given: argparse.Namespace) -> None:
    model = llama_cpp().Llama(str(given.file), vocab_only=True, verbose=False)

    def encode(text: str) -> list[int]:
        return list(model.tokenize(text.encode(), add_bos=False, special=True))

    lines = read_lines(given.lines, given.limit)
    found = compare(Tokenizer.from_directory(given.file), encode, lines)
    print(f"{len(lines) - len(found):,} of {len(lines):,} lines are cut alike.")
    for cut in found[:_SHOWN]:
        print(f"\n{cut.text[:200]!r}\n  ours   {' '.join(cut.ours)}\n  theirs {' '.join(cut.theirs)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = new_parser("gguf_text", __doc__)
    parser.add_argument("file", type=Path, help="a GGUF model")
    parser.add_argument("--lines", type=Path, nargs="+", required=True, help="plain or gzipped texts, a line each")
    parser.add_argument("--limit", type=int, default=10_000, help="lines used")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
