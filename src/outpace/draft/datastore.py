"""A corpus on disk that answers what followed some tokens: token ids and their suffix array, memory-mapped.

The file, version 1, is a header of 96 bytes, the tokens, and the suffix array:

    offset  bytes  what
         0      8  magic: "OUTPACE", 0x1a
         8      4  version
        12      4  bytes per token: 2 or 4
        16      4  vocabulary size V; the id V parts texts, and the last token is one
        20      4  CRC-32 of everything behind the header
        24      8  N, the number of tokens
        32      8  number of texts
        40     32  fingerprint of the tokenizer, zeros = unknown
        72     20  zeros
        92      4  CRC-32 of the 92 bytes before
        96         N tokens, big-endian, so that comparing bytes compares tokens; zeros up to a multiple of 4
                   N places of 4 bytes: where the suffixes start, in lexicographic order

All other integers are little-endian.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from outpace.draft.suffixes import suffix_array
from outpace.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["Continuations", "Datastore", "Match", "open_datastore", "vocabulary_mark", "write_datastore"]

_MAGIC, _VERSION, _SIZE = b"OUTPACE\x1a", 1, 96
_HEADER = struct.Struct("<8s4I2Q32s20x")
_AGAIN = "Make it again with outpace index CORPUS --model MODEL --out FILE."


@lru_cache(maxsize=8)
def vocabulary_mark(tokenizer: Tokenizer) -> bytes:
    """Return 32 bytes that tell vocabularies apart: a hash of how every id is spelled."""
    spelled = "\0".join(tokenizer.token(index) for index in range(tokenizer.vocab_size))
    return hashlib.sha256(spelled.encode("utf-8", "surrogatepass")).digest()


def write_datastore(
    path: Path, texts: Sequence[Sequence[int] | npt.NDArray[np.integer]], vocab_size: int, mark: bytes = bytes(32)
) -> int:
    """Write a datastore in one indivisible step; whatever was there before is replaced.

    Args:
        path: the file.
        texts: token ids, text by text.
        vocab_size: ids go up to this number.
        mark: `vocabulary_mark` of the tokenizer.

    Returns:
        The file's size in bytes.

    Raises:
        ConfigError: there is no token, or too many.
        StorageError: the file cannot be written.
    """
    kind = np.dtype(np.uint16 if vocab_size < 2**16 else np.uint32)
    parts = [np.append(np.asarray(text, kind), kind.type(vocab_size)) for text in texts if len(text)]
    if not parts:
        raise ConfigError("The corpus holds no text.", "Give files with text in them.")
    tokens = np.concatenate(parts)
    try:
        places = suffix_array(tokens).astype("<u4")
    except ValueError:
        raise ConfigError(f"The corpus has {len(tokens)} tokens.", "Make several datastores of parts of it.") from None
    data = tokens.astype(kind.newbyteorder(">")).tobytes()
    body = [data, bytes(-len(data) % 4), places.tobytes()]
    checksum = 0
    for piece in body:
        checksum = zlib.crc32(piece, checksum)
    head = _HEADER.pack(_MAGIC, _VERSION, kind.itemsize, vocab_size, checksum, len(tokens), len(parts), mark)
    _replace(path, [head, struct.pack("<I", zlib.crc32(head)), *body])
    return path.stat().st_size


def _replace(path: Path, pieces: Sequence[bytes]) -> None:
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise StorageError(f"{path} could not be written ({error.strerror}).", "Free some space.") from error
    finally:
        part.unlink(missing_ok=True)


def open_datastore(path: str | os.PathLike[str]) -> Datastore:
    """Return the datastore in a file; one that was opened before and has not changed is not checked again.

    Raises:
        ConfigError: there is no such file, it is no datastore, or it is damaged.
    """
    try:
        about = os.stat(path)
    except OSError:
        raise ConfigError(f"There is no datastore {str(path)!r}.", _AGAIN.replace(" it again", " one")) from None
    try:
        return _open(os.path.abspath(path), about.st_mtime_ns, about.st_size)
    except OSError as error:  # a folder, or not ours to read
        raise ConfigError(f"The datastore {str(path)!r} cannot be read: {error.strerror}.", "Name a file.") from None


@lru_cache(maxsize=8)
def _open(path: str, changed: int, size: int) -> Datastore:
    del changed, size  # they are part of the key: another file of the same name is another datastore
    return Datastore(path)


@dataclass(frozen=True, slots=True)
class Match:
    """Where some tokens occur: the suffixes low <= i < high begin with them.

    Attributes:
        length: tokens matched; 0 = nowhere.
        low, high: range in the suffix array.
    """

    length: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Continuations:
    """A tree of what followed, the most frequent nodes; parents precede children.

    Attributes:
        tokens: [n] ids.
        parent: [n] index of the parent, -1 = the text itself.
        count: [n] how many of the occurrences looked at go on through the node.
    """

    tokens: npt.NDArray[np.int64]
    parent: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]


class Datastore:
    """A memory-mapped datastore.

    Opening reads the file once to check it; looking something up touches a few pages.

    Args:
        path: the file.

    Raises:
        ConfigError: it is no datastore, or it is damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with open(path, "rb") as file:
            head = file.read(_SIZE)
            if len(head) < _SIZE or head[:8] != _MAGIC:
                raise ConfigError(f"{path!r} is no datastore.", _AGAIN.replace(" it again", " one"))
            _, version, width, self.vocab_size, checksum, count, self.num_texts, self.mark = _HEADER.unpack(
                head[: _HEADER.size]
            )
            if struct.unpack("<I", head[_HEADER.size :])[0] != zlib.crc32(head[: _HEADER.size]):
                raise ConfigError(f"The header of the datastore {path!r} is damaged.", _AGAIN)
            if version != _VERSION:
                raise ConfigError(f"The datastore {path!r} is of version {version}, not {_VERSION}.", _AGAIN)
            self.num_tokens, self._width = int(count), int(width)
            end = _SIZE + count * width
            start = end + -end % 4
            if os.fstat(file.fileno()).st_size != start + 4 * count:
                raise ConfigError(f"The datastore {path!r} is cut short, or longer than its header says.", _AGAIN)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if zlib.crc32(memoryview(self._map)[_SIZE:]) != checksum:
            raise ConfigError(f"The datastore {path!r} is damaged: its checksum is wrong.", _AGAIN)
        self._tokens = np.frombuffer(self._map, f">u{width}", count, _SIZE)
        self._places = np.frombuffer(self._map, "<u4", count, start)
        # The same places as Python integers, which the array gives more slowly; little-endian machines only.
        self._sorted = memoryview(self._map)[start:].cast("I")

    def check(self, vocab_size: int, tokenizer: Tokenizer | None) -> None:
        """See that the datastore speaks a model's vocabulary.

        Raises:
            ConfigError: it was made with another tokenizer.
        """
        is_other = tokenizer is not None and any(self.mark) and self.mark != vocabulary_mark(tokenizer)
        if is_other or self.vocab_size > vocab_size:
            raise ConfigError(
                f"The datastore {self.path!r} was made with another tokenizer than this model's.",
                "Make one for this model with outpace index CORPUS --model MODEL --out FILE.",
            )

    def find(self, text: Sequence[int], smallest: int, largest: int) -> Match:
        """Return where the longest ending of `text` occurs, of `smallest` to `largest` tokens.

        An ending occurs only if the shorter ones do, so its length is found by bisection too.
        """
        tail = list(text[-largest:])
        foreign = max((at for at, token in enumerate(tail) if token >= self.vocab_size), default=-1)
        query = np.array(tail[foreign + 1 :], f">u{self._width}").tobytes()
        low, high = smallest, len(query) // self._width
        best = Match(0, 0, 0)
        length = low  # most texts that match at all match further, but many match nowhere
        while low <= high:
            ending = query[len(query) - length * self._width :]
            first = self._bisect(ending, is_right=False)
            if self._starts_with(first, ending):
                best, low = Match(length, first, first), length + 1
            else:
                high = length - 1
            length = (low + high + 1) // 2
        if best.length == 0:
            return best
        ending = query[len(query) - best.length * self._width :]
        return Match(best.length, best.low, self._bisect(ending, is_right=True, low=best.low))

    def _bisect(self, ending: bytes, is_right: bool, low: int = 0) -> int:
        data, width, size = self._map, self._width, len(ending)

        def beginning(place: int) -> bytes:
            start = _SIZE + place * width
            return data[start : start + size]

        if is_right:
            return bisect_right(self._sorted, ending, low, key=beginning)
        return bisect_left(self._sorted, ending, low, key=beginning)

    def _starts_with(self, index: int, ending: bytes) -> bool:
        if index >= self.num_tokens:
            return False
        start = _SIZE + self._sorted[index] * self._width
        return self._map[start : start + len(ending)] == ending

    def follow(self, match: Match, depth: int, budget: int, sample: int = 256) -> Continuations:
        """Count what follows the occurrences of a match, and return the most frequent nodes of the resulting tree.

        Args:
            match: from `find`.
            depth: most tokens per continuation; none goes past the end of its text.
            budget: most nodes. Of equally frequent ones the shallower stays, then the first in order.
            sample: look at no more occurrences than this, evenly spread over all of them in lexicographic order.
        """
        occurrences = match.high - match.low
        rows = min(occurrences, sample)
        if rows == 0 or depth < 1 or budget < 1:
            none = np.zeros(0, np.int64)
            return Continuations(none, none, none)
        chosen = match.low + np.arange(rows) * occurrences // rows
        start = self._places[chosen].astype(np.int64) + match.length
        table = self._tokens[np.minimum(start[:, None] + np.arange(depth), self.num_tokens - 1)]
        # The occurrences are sorted, so equal beginnings are neighbours, and a node is a run of rows at one depth.
        is_first = np.ones((rows, depth), np.bool_)
        np.logical_or.accumulate(table[1:] != table[:-1], axis=1, out=is_first[1:])
        is_inside = np.logical_and.accumulate(table != self.vocab_size, axis=1)
        place = np.flatnonzero(is_first.T)  # by depth, then by row: parents precede children
        count = np.diff(place, append=rows * depth)
        is_node = is_inside.T.reshape(-1)[place]
        place, count = place[is_node], count[is_node]
        # A child is never more frequent than its parent and comes later, so a stable sort keeps trees whole.
        kept = np.sort(np.argsort(-count, kind="stable")[:budget])
        place, count = place[kept], count[kept]
        # The parent is the last node that starts at or before this row, one depth up.
        parent = np.searchsorted(place, place - rows, side="right") - 1
        return Continuations(table.T.reshape(-1)[place].astype(np.int64), np.where(place < rows, -1, parent), count)
