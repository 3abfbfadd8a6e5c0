"""Reading a translation memory: lines that were written, and, where they are known, the lines that were read for them.

A pair becomes one text: the source, the decoder's start token, what was written. So the end of a text that is under way
may match beyond its beginning, into its source, and what was written for the most similar end of a source is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path

import numpy as np

from outpace.draft.corpus import Corpus, read_texts
from outpace.errors import ConfigError
from outpace.text.tokenizer import Tokenizer

__all__ = ["read_translations"]


def read_translations(
    found: Corpus, files: Sequence[Path], sources: Path | None, tokenizer: Tokenizer, start: int
) -> None:
    """Add what was written, line by line, to a corpus.

    Args:
        found: the corpus.
        files: files, or folders whose files are all read, a text per line (of `.jsonl`: a "text").
        sources: a file with what was read, in the order of those lines; None = it is not known.
        tokenizer: of the model.
        start: the decoder's start token.

    Raises:
        ConfigError: as `Corpus.read`, or one side has a line that the other lacks.
    """
    written, read = list(_lines(files, found.skipped)), [] if sources is None else list(_lines([sources], []))
    if sources is not None and len(read) != len(written):
        longer, other = ("corpus", "sources") if len(written) > len(read) else ("sources", "corpus")
        raise ConfigError(
            f"The corpus has {len(written)} lines, {str(sources)!r} has {len(read)}: line "
            f"{min(len(read), len(written)) + 1} of the {longer} has nothing beside it in the {other}.",
            "Give files of as many lines, the same line for the same sentence.",
        )
    for source, line in zip(read or repeat(""), written, strict=bool(read)):
        if not line or (sources is not None and not source):
            continue
        before = tokenizer.rewritten(tokenizer.encode(source)) if source else []
        found.texts.append(np.array([*before, start, *tokenizer.encode(line)], np.uint32))
        found.num_bytes += len(source.encode()) + len(line.encode())


def _lines(files: Sequence[Path], skipped: list[Path]) -> Iterator[str]:
    for text in read_texts(files, skipped):
        yield from (line.strip() for line in text.removesuffix("\n").split("\n"))
