"""The head of a GGUF file: typed metadata and the table of its tensors, each number checked before it is believed.

A reader of its own: `gguf.GGUFReader` takes 4 s for a vocabulary of 49k tokens (it makes two arrays per string) and
trusts counts and lengths; it is the tests' oracle. Here nothing is allocated that the file is too short to hold.
"""

from __future__ import annotations

import functools
import mmap
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from outpace.errors import ModelError
from outpace.text.files import AGAIN

__all__ = ["BLOCKS", "Gguf", "Stored", "find_gguf", "forget", "is_gguf", "read_gguf", "shortest"]

_MAGIC, _VERSIONS, _ALIGNMENT = b"GGUF", (2, 3), 32
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}
_MOST_DIMS = 4
_PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")

# Tensor types: name, weights per block, bytes per block. Those that are not read have no sizes.
BLOCKS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
    39: ("MXFP4", 32, 17),
}
_READ = BLOCKS | {27: ("I64", 1, 8)}  # the last are token ids of drafters, never weights
_UNREAD = dict(
    enumerate("IQ2_XXS IQ2_XS IQ3_XXS IQ1_S".split(), 16),
) | {9: "Q8_1", 15: "Q8_K", 21: "IQ3_S", 22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 28: "F64"}
_UNREAD |= {29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4", 41: "Q1_0"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one tensor lies.

    Attributes:
        path: the file, of several the part.
        offset: its first byte there.
        num_bytes: what it takes.
        kind: a name of `BLOCKS`, or I64.
        shape: outermost first, as elsewhere; files have it the other way round.
    """

    path: Path
    offset: int
    num_bytes: int
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Gguf:
    """One model: the metadata of its (first) file, and the tensors of all parts by the names that files give them.

    Arrays are lists of text or numpy arrays.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    def get(self, key: str, kind: type[T], default: T | None = None) -> T | None:
        """Return a value, or the default where there is none.

        Args:
            key: its name.
            kind: str, bool, int, float (an int is one too), list (of text) or np.ndarray.
            default: what a missing key stands for.

        Raises:
            ModelError: the value is of another kind.
        """
        value = self.metadata.get(key)
        if value is None:
            return default
        is_flag = isinstance(value, bool)
        if isinstance(value, kind) and is_flag == (kind is bool):
            return value
        if kind is float and isinstance(value, int) and not is_flag:
            return kind(value)  # type: ignore[call-arg]
        if kind in (list, np.ndarray) and isinstance(value, (list, np.ndarray)) and not len(value):
            return default  # an empty array is written with any type
        raise ModelError(f"{self.path} says {key} {_short(value)}, which is no {_KINDS[kind]}.", AGAIN)


_KINDS = {str: "text", bool: "flag", int: "whole number", float: "number", list: "list of text"}
_KINDS |= {np.ndarray: "list of numbers"}


def _short(value: Any) -> str:
    return repr(value) if len(repr(value)) < 60 else f"of {len(value)} entries"


def shortest(number: float) -> float:
    """Return a float32 as the shortest decimal that means it: 1e-05, as the model's config said, of 9.9999997e-06."""
    return float(str(np.float32(number)))


def is_gguf(path: Path) -> bool:
    """Return whether a path is a file that is called GGUF, or begins as one does (other programs' stores)."""
    if not path.is_file():
        return False
    if path.suffix == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == _MAGIC
    except OSError:
        return False


def find_gguf(path: Path) -> Path | None:
    """Return the GGUF model that a path names: the file, the first of its parts, or the only one in a folder.

    None where a folder holds a model of another kind, or the path something else.

    Raises:
        ModelError: a folder holds several GGUF models and no safetensors.
    """
    if is_gguf(path):
        part = _PART.match(path.name)
        return path.with_name(f"{part['stem']}-{1:05}-of-{part['count']}.gguf") if part else path
    if not path.is_dir() or next(path.glob("*.safetensors"), None):
        return None
    names = sorted(file.name for file in path.glob("*.gguf") if not file.name.startswith("mmproj"))
    models = {(part["stem"], part["count"]) if (part := _PART.match(name)) else name: name for name in reversed(names)}
    if len(models) > 1:
        raise ModelError(
            f"{path} holds {len(models)} GGUF models.", f"Name one of them: {', '.join(sorted(models.values()))}."
        )
    return find_gguf(path / names[0]) if names else None


def read_gguf(path: Path) -> Gguf:
    """Return the head of a model, of all its parts; read once while the files stay as they are, until `forget`.

    Args:
        path: the file, of several the first one.

    Raises:
        ModelError: it is no GGUF, damaged, of a version or with tensors that are not read here, or lacks parts.
    """
    part = _PART.match(path.name)
    count = int(part["count"]) if part else 1
    if part is None or count < 2:
        return _read_marked(path, _mark(path))
    paths = [path.with_name(f"{part['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = [one.name for one in paths if not one.is_file()]
    if missing:
        raise ModelError(f"{path} has {count} parts, of which {missing[0]} is missing.", "Fetch all parts.")
    heads = [_read_marked(one, _mark(one)) for one in paths]
    tensors: dict[str, Stored] = {}
    for number, head in enumerate(heads):
        if head.get("split.no", int, number) != number or head.get("split.count", int, count) != count:
            raise ModelError(f"{head.path} says that it is another part.", "Give the parts the names that they had.")
        for name, stored in head.tensors.items():
            if name in tensors:
                raise ModelError(f"{name} is in {tensors[name].path.name} and in {stored.path.name}.", AGAIN)
            tensors[name] = stored
    return Gguf(path, heads[0].metadata, tensors)


def forget() -> None:
    """Let go of the heads that were read: a vocabulary's texts take tens of megabytes."""
    _read_marked.cache_clear()


def _mark(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.", AGAIN) from None
    return found.st_size, found.st_mtime_ns


@functools.lru_cache(maxsize=16)
def _read_marked(path: Path, mark: tuple[int, int]) -> Gguf:
    """Read one file; `mark` tells a changed one from what is remembered."""
    if mark[0] < 24:
        raise ModelError(f"{path} is too short to be a GGUF file.", AGAIN)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Head(path, data).read()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.", AGAIN) from None


class _Head:
    """Reads from the front; `at` is the next byte."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at, self.size = path, data, 0, len(data)

    def read(self) -> Gguf:
        if self.data[:4] != _MAGIC:
            self.refuse("is not a GGUF file")
        self.at = 4
        version = self.number("I")
        if version & 0xFFFF == 0:
            self.refuse("is a big-endian GGUF file, which is not read here", "Convert it for this machine.")
        if version not in _VERSIONS:
            self.refuse(f"is GGUF of version {version}; 2 and 3 are read here", "Convert the model again.")
        num_tensors, num_keys = self.number("Q"), self.number("Q")
        self.check_count(num_tensors, 8 + 1 + 4 + 8 + 4 + 8, "tensors")
        self.check_count(num_keys, 8 + 1 + 4 + 1, "keys")
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self.text()
            if key in metadata:
                self.refuse(f"states {key} twice")
            metadata[key] = self.value(self.number("I"), key)
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            self.refuse(f"states an alignment of {_short(alignment)}, which is no power of two")
        table = [self.tensor() for _ in range(num_tensors)]
        return Gguf(self.path, metadata, self.place(table, -(-self.at // alignment) * alignment, alignment))

    def number(self, code: str) -> Any:
        """Return one number of a type that `struct` names."""
        size = struct.calcsize("<" + code)
        self.need(size)
        value = struct.unpack_from("<" + code, self.data, self.at)[0]
        self.at += size
        return value

    def text(self) -> str:
        length = self.number("Q")
        self.need(length)
        raw = self.data[self.at : self.at + length]
        self.at += length
        return self.decoded(raw)

    def decoded(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.refuse("holds text that is no UTF-8")

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array(self.number("I"), self.number("Q"), key)
        if kind not in _NUMBERS:
            self.refuse(f"states {key} as a value of type {kind}, which is not known")
        return self.number("B") != 0 if kind == _BOOL else self.number(_NUMBERS[kind])

    def array(self, kind: int, count: int, key: str) -> Any:
        if kind == _STRING:
            self.check_count(count, 8, f"entries of {key}")
            return self.texts(count)
        if kind not in _NUMBERS:
            self.refuse(f"states {key} as a list of type {kind}, which is not known")
        dtype = np.dtype("<u1" if kind == _BOOL else _NUMBERS[kind]).newbyteorder("<")
        self.check_count(count, dtype.itemsize, f"entries of {key}")
        found = np.frombuffer(self.data, dtype, count, self.at).copy() if count else np.empty(0, dtype)
        self.at += count * dtype.itemsize
        return found.astype(bool) if kind == _BOOL else found

    def texts(self, count: int) -> list[str]:
        """Return many texts; what `text` does, without its calls (vocabularies have 10^5)."""
        data, at, size, found = self.data, self.at, self.size, []
        unpack: Callable[[Any, int], tuple[int]] = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > size:
                self.refuse_short()
            (length,) = unpack(data, at)
            at += 8 + length
            if at > size:
                self.refuse_short()
            found.append(data[at - length : at])
        self.at = at
        try:
            return [raw.decode() for raw in found]
        except UnicodeDecodeError:
            self.refuse("holds text that is no UTF-8")

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return name, shape, type and offset of one entry of the table."""
        name, num_dims = self.text(), self.number("I")
        if not 1 <= num_dims <= _MOST_DIMS:
            self.refuse(f"says that {name!r} has {num_dims} dimensions")
        dims = [self.number("Q") for _ in range(num_dims)]
        kind, offset = self.number("I"), self.number("Q")
        if kind in _UNREAD:
            self.refuse(
                f"stores {name} as {_UNREAD[kind]}, which is not read here",
                f"Use a file of {', '.join(block[0] for block in BLOCKS.values())}.",
            )
        if kind not in _READ:
            self.refuse(f"stores {name} as type {kind}, which is not known")
        if min(dims) < 1 or prod(dims) > 8 * self.size * _READ[kind][1]:
            self.refuse(f"says that {name} has the shape {dims[::-1]}, which it is too short for")
        if dims[0] % _READ[kind][1]:
            self.refuse(f"stores {name} as {_READ[kind][0]}, whose blocks do not fill rows of {dims[0]}")
        return name, tuple(reversed(dims)), kind, offset

    def place(self, table: list[tuple[str, tuple[int, ...], int, int]], base: int, alignment: int) -> dict[str, Stored]:
        """Return the tensors by name, each within the file and none upon another."""
        found: dict[str, Stored] = {}
        for name, shape, kind, offset in table:
            label, per_block, block = _READ[kind]
            num_bytes = prod(shape) // per_block * block
            if offset % alignment or base + offset + num_bytes > self.size:
                self.refuse(f"is truncated, or places {name} at byte {base + offset} wrongly")
            if name in found:
                self.refuse(f"holds {name} twice")
            found[name] = Stored(self.path, base + offset, num_bytes, label, shape)
        end = 0
        for name, stored in sorted(found.items(), key=lambda item: item[1].offset):
            if stored.offset < end:
                self.refuse(f"lays {name} over another tensor")
            end = stored.offset + stored.num_bytes
        return found

    def check_count(self, count: int, least: int, what: str) -> None:
        """Refuse a count that the rest of the file cannot hold, at `least` bytes each."""
        if count * least > self.size - self.at:
            self.refuse(f"is truncated: it promises {count} {what}")

    def need(self, count: int) -> None:
        if count > self.size - self.at:
            self.refuse_short()

    def refuse_short(self) -> NoReturn:
        self.refuse("is truncated: it ends in its own head")

    def refuse(self, what: str, hint: str = AGAIN) -> NoReturn:
        raise ModelError(f"{self.path} {what}.", hint)
