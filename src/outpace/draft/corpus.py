"""Reading a corpus: files, folders and JSON lines to texts, and texts to token ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from outpace.errors import ConfigError

__all__ = ["Corpus", "pieces", "read_texts"]

_PIECE = 16_384  # characters handed to a tokenizer at once: longer strings take it longer per character


@dataclass(slots=True)
class Corpus:
    """What was read.

    Attributes:
        texts: token ids, text by text.
        num_bytes: of text, in UTF-8.
        skipped: files of folders that are no text.
    """

    texts: list[npt.NDArray[np.uint32]] = field(default_factory=list)
    num_bytes: int = 0
    skipped: list[Path] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(text) for text in self.texts)

    def read(
        self, files: Sequence[Path], encode: Callable[[str], list[int]], on_bytes: Callable[[int], None] | None = None
    ) -> None:
        """Add the texts of files and folders.

        Args:
            files: files, or folders whose files are all read; `.jsonl` holds one object with a "text" per line.
            encode: text to ids, without the special tokens that begin or end a prompt.
            on_bytes: told how many bytes of text were just encoded.

        Raises:
            ConfigError: a file that was named is missing or no text, or a line is no object with a "text".
        """
        for text in read_texts(files, self.skipped):
            ids = []
            for piece in pieces(text):
                ids.append(np.array(encode(piece), np.uint32))
                size = len(piece.encode("utf-8", "surrogatepass"))
                self.num_bytes += size
                if on_bytes is not None:
                    on_bytes(size)
            if ids:
                self.texts.append(np.concatenate(ids))


def read_texts(files: Sequence[Path], skipped: list[Path]) -> Iterator[str]:
    """Yield the texts of files and folders; files of folders that are no text are noted in `skipped` instead.

    Raises:
        ConfigError: see `Corpus.read`.
    """
    for path in files:
        if path.is_dir():
            for inner in sorted(path.rglob("*")):
                if inner.is_file() and not any(part.startswith(".") for part in inner.relative_to(path).parts):
                    yield from _read(inner, skipped)
        elif path.is_file():
            yield from _read(path, None)
        else:
            raise ConfigError(f"There is no file or folder {str(path)!r}.", "Name text files, folders or .jsonl files.")


def _read(path: Path, skipped: list[Path] | None) -> Iterator[str]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
        is_text = "\0" not in text
    except UnicodeDecodeError:
        is_text = False
    if not is_text and skipped is None:
        raise ConfigError(f"The file {str(path)!r} is no UTF-8 text.", "Convert it with iconv -t utf-8, or unpack it.")
    if not is_text and skipped is not None:
        skipped.append(path)
    elif path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield _parse(line, f"{path}, line {number},")
    else:
        yield text


def _parse(line: str, where: str) -> str:
    try:
        found = json.loads(line)
    except ValueError:
        raise ConfigError(f"{where} is no JSON.", "Write one object per line.") from None
    text = found.get("text") if isinstance(found, dict) else None
    if not isinstance(text, str):
        raise ConfigError(f'{where} has no "text".', 'Write each line as {"text": "..."}.')
    return text.encode("utf-8", "replace").decode("utf-8")  # JSON may hold halves of characters, tokenizers take none


def pieces(text: str) -> Iterator[str]:
    """Cut a long text at line ends, where tokens end too."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _PIECE)
        # The break goes with the text before it, and so do the breaks that follow it.
        while 0 <= end < len(text) and text[end].isspace():
            end += 1
        end = len(text) if end < 0 else end
        yield text[start:end]
        start = end
