"""Collections that methods read: once for each target, shared by all rows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from outpace.draft.corpus import Corpus
from outpace.errors import ConfigError
from outpace.text.tokenizer import Tokenizer
from outpace.types import Adapter

__all__ = ["Shelf", "file_marks", "read_collection", "shelved"]

Each = TypeVar("Each")
_KNOWN: WeakKeyDictionary[Adapter, dict[Hashable, Any]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True, eq=False)
class Shelf(Generic[Each]):
    """What all rows of a run share; None = there is nothing."""

    held: Each | None

    def rows(self, index: Sequence[int]) -> Shelf[Each]:
        """Return itself."""
        del index
        return self

    def join(self, shelves: Sequence[Shelf[Each]]) -> Shelf[Each]:
        """Return itself."""
        del shelves
        return self


def shelved(target: Adapter, key: Hashable, make: Callable[[], Each]) -> Shelf[Each]:
    """Return what `make` gives, made once for a target and a key, and kept as long as the target."""
    known = _KNOWN.setdefault(target, {})
    if key not in known:
        known[key] = make()
    return Shelf(known[key])


def file_marks(*files: str) -> tuple[tuple[str, int], ...]:
    """Return files with the time of their last change: another file of the same name is another one.

    Raises:
        ConfigError: one is not there.
    """
    try:
        return tuple((file, Path(file).stat().st_mtime_ns) for file in files)
    except OSError as error:
        raise ConfigError(f"There is no file {error.filename!r}.", "Name files that exist.") from None


def read_collection(file: str, tokenizer: Tokenizer | None) -> list[list[int]]:
    """Return the token ids of a collection's texts: of a text, a folder of texts, or a .jsonl file.

    Raises:
        ConfigError: it cannot be read or holds no text, or there is no tokenizer.
    """
    if tokenizer is None:
        raise ConfigError("A collection needs the model's tokenizer.", "Use a model that has one.")
    corpus = Corpus()
    corpus.read([Path(file)], lambda text: tokenizer.encode(text, is_special=False))
    texts: list[list[int]] = [text.tolist() for text in corpus.texts if len(text)]
    if not texts:
        raise ConfigError(f"The collection {file!r} holds no text.", "Give files with text in them.")
    return texts
