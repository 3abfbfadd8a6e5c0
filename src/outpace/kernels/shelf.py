"""Packed weights kept between starts: written once beside the compiled kernels, mapped by every later start.

A mapped file is shared by all processes that read it and costs no copy. A file is found by what its bytes depend on:
the model's files, told by size, inode, both time stamps and the bytes at both ends (any write sets the time of the last
change, which no program can choose; hashing all of them would take as long as packing), the decoder's shape, dtype,
kernels, and the code that reads and packs. Files that changed a moment ago are not believed: clocks are coarse.

A file is blocks of 2 MB, written whole so that the page cache holds them as huge pages, then a description with the sum
of each block and a hash of its own. All of it is checked at every start: the sums are as quick as memory is read.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import functools
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outpace import store
from outpace.errors import ConfigError
from outpace.kernels.decoder import ALIGNMENT, DTYPES, Panels, supports
from outpace.kernels.library import Coding, MatrixView, empty_buffer, load, note
from outpace.models.spec import Spec
from outpace.models.weights import LayerWeights, Matrix, Norm, Weights

__all__ = ["Shelf", "clear_packed", "list_packed", "open_shelf", "packed_folder", "packed_limit"]

SMALLEST = 32 << 20  # bytes of packed weights; fewer are packed in no time
SETTLED_S = 2.0  # a file that has not changed for so long will show the next change
_BLOCK = 2 << 20
_MAGIC = b"outpace packed 1"
_DEFAULT_GB, _VARIABLE = 8.0, "OUTPACE_PACKED_GB"
_CODING = ("bits", "group", "factors", "has_shift", "zero")
_TABLE = 16  # entries of a table of codes, as of 4 bits
_MOST_FAULTS = 4  # per block; small pages are mapped some 16 at a time, which makes 32


def packed_folder() -> Path:
    """Return where packed weights are kept."""
    return store.cache_folder() / "packed"


def packed_limit() -> int:
    """Return how many bytes may be kept: OUTPACE_PACKED_GB (10^9 bytes each; 0 = nothing), or 8 GB.

    Raises:
        ConfigError: the variable holds something else.
    """
    stated = os.environ.get(_VARIABLE) or str(_DEFAULT_GB)
    with contextlib.suppress(ValueError):
        if 0 <= (gigabytes := float(stated)) < math.inf:
            return int(gigabytes * 1e9)
    raise ConfigError(f"{_VARIABLE} is {stated!r}.", "It is a number of gigabytes, 0 = no packed weights are kept.")


def list_packed() -> list[tuple[Path, int]]:
    """Return the files that are kept and their sizes in bytes, those used longest ago first."""
    found = []
    for path in packed_folder().glob("*.weights"):
        with contextlib.suppress(OSError):  # another process may be removing it
            facts = path.stat()
            found.append((facts.st_mtime_ns, path, facts.st_size))
    return [(path, size) for _, path, size in sorted(found)]


def clear_packed() -> int:
    """Remove all files that are kept; return how many it was. Processes that have mapped one go on with it."""
    removed = 0
    for path, _ in list_packed():
        with contextlib.suppress(OSError):
            path.unlink()
            removed += 1
    return removed


def open_shelf(spec: Spec, dtype: torch.dtype, sources: Iterable[Path], variant: str) -> Shelf | None:
    """Return the place of a model's packed weights; None where they cannot be kept, or are not to be.

    Args:
        spec: the decoder's shape.
        dtype: of plain matrices.
        sources: all files that its weights are made of, settings included.
        variant: what else decides how they are read.
    """
    library = load() if dtype in DTYPES and supports(spec) and packed_limit() else None
    if library is None:
        return None
    shape = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    del shape["max_positions"]  # weights are the same for every length of text
    made_by = (note(), _code(), torch.__version__, np.__version__)
    fixed = repr((sorted(shape.items()), dtype, variant, *made_by))
    shelf = Shelf(library, fixed, sorted(set(sources)))
    return shelf if shelf.key else None


class Shelf:
    """Where the packed weights of one model are kept.

    Args:
        library: the kernels.
        fixed: what their bytes depend on beside the sources.
        sources: the files that they are made of.

    Attributes:
        key: their name; empty = the sources cannot be told apart from what they will be.
    """

    def __init__(self, library: ctypes.CDLL, fixed: str, sources: Sequence[Path]) -> None:
        self._library, self._fixed, self._sources = library, fixed, sources
        self.key = self._find_key()
        self.path = packed_folder() / f"{self.key}.weights"

    def find(self) -> tuple[Weights, list[str]] | None:
        """Return packed weights and the notes that were put there with them; None where there are none.

        A damaged file is removed, and stands for none.
        """
        try:
            found = _open(self._library, self.path)
            os.utime(self.path)  # used now
        except FileNotFoundError:
            return None
        except PermissionError:  # of a folder that others may write: what was read is good
            return found
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError):
            with contextlib.suppress(OSError):
                self.path.unlink()
            return None
        return found

    def put(self, weights: Weights, notes: Sequence[str]) -> str:
        """Keep packed weights for later starts; return what a user should know if that fails, else an empty text."""
        described = _Described(weights, notes)
        is_worth = described.num_bytes >= SMALLEST and described.size <= packed_limit()
        if not is_worth or self._find_key() != self.key:
            return ""
        try:
            with store.locked(packed_folder() / "lock", on_wait=_leave):
                self._put(described)
        except _Busy:  # another process writes; it may be this very file
            return ""
        except OSError as error:
            reason = f"{packed_folder()} cannot keep packed weights ({error.strerror or error})"
            return f"{reason}: every start packs them anew. {_VARIABLE}=0 does not try."
        return ""

    def _put(self, described: _Described) -> None:
        for left in packed_folder().glob("*.part"):  # of a process that was killed: here, under the lock, nobody writes
            left.unlink(missing_ok=True)
        if self.path.exists():
            return
        if shutil.disk_usage(packed_folder()).free < 2 * described.size:
            raise OSError(errno.ENOSPC, "they would take more than half of what is free there")
        kept = list_packed()
        room = packed_limit() - described.size - sum(size for _, size in kept)
        for path, size in kept:
            if room < 0:
                path.unlink(missing_ok=True)
                room += size
        with store.replacing(self.path) as file:
            for piece in described.file():
                file.write(piece)

    def _find_key(self) -> str:
        made = hashlib.sha256(self._fixed.encode())
        try:
            for path in self._sources:
                facts = path.stat()
                if time.time() - max(facts.st_mtime, facts.st_ctime) < SETTLED_S:
                    return ""
                stated = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
                made.update(repr((path.name, stated)).encode() + _ends(path, facts.st_size))
        except OSError:
            return ""
        return made.hexdigest()[:32]


class _Busy(Exception):
    """Another process holds the lock."""


def _leave() -> None:
    raise _Busy


def _ends(path: Path, size: int, count: int = 1 << 16) -> bytes:
    with path.open("rb") as file:
        first = file.read(count)
        file.seek(max(0, size - count))
        return hashlib.sha256(first + file.read(count)).digest()


@functools.cache
def _code() -> str:
    """Return a hash of the code that reads files and packs what they hold."""
    root = Path(__file__).parents[1]
    files = [*sorted(root.glob("models/*.py")), *sorted(root.glob("kernels/*.py")), root / "text" / "gguf_file.py"]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


# Writing


class _Described:
    """Weights as a description that JSON holds, and the bytes that it speaks of."""

    def __init__(self, weights: Weights, notes: Sequence[str]) -> None:
        self.num_bytes = 0
        self._parts: list[tuple[int, memoryview]] = []
        self._kept = weights
        is_tied = weights.table is weights.head or (weights.table is None and not weights.embed.numel())
        self._record = {
            "notes": list(notes),
            "embed": self._tensor(weights.embed),
            "head": self._matrix(weights.head),
            "table": None if is_tied or weights.table is None else self._matrix(weights.table),
            "is_tied": is_tied,
            "final_norm": self._norm(weights.final_norm),
            "layers": [self._layer(layer) for layer in weights.layers],
        }

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return -(-self.num_bytes // _BLOCK) * _BLOCK

    def file(self) -> Iterator[bytes]:
        """Yield what the file holds, block by block."""
        sums = []
        for block in _blocks(self._parts):
            sums.append(_sums(np.frombuffer(block, np.uint64))[0])
            yield block
        text = json.dumps({**self._record, "sums": sums}).encode()
        yield text + hashlib.sha256(text).digest() + len(text).to_bytes(8, "little") + _MAGIC

    def _layer(self, layer: LayerWeights) -> dict[str, Any]:
        described: dict[str, Any] = {}
        for field in dataclasses.fields(layer):
            part = getattr(layer, field.name)
            if isinstance(part, Matrix):
                described[field.name] = self._matrix(part)
            else:
                described[field.name] = self._norm(part) if isinstance(part, Norm) else self._tensor(part)
        return described

    def _matrix(self, matrix: Matrix) -> dict[str, Any]:
        panels = matrix.panels
        assert isinstance(panels, Panels)  # the decoder was compiled
        coding = panels.view.coding
        table = list((ctypes.c_uint8 * _TABLE).from_address(coding.table)) if coding.table else None
        return {
            "at": self._place(panels.view.data, panels.num_bytes),
            "num_bytes": panels.num_bytes,
            "coding": [getattr(coding, name) for name in _CODING],
            "table": table,
            "shape": list(matrix.shape),
            "bias": self._tensor(matrix.bias),
        }

    def _norm(self, norm: Norm | None) -> list[Any] | None:
        return None if norm is None else [self._tensor(norm.weight), self._tensor(norm.bias)]

    def _tensor(self, tensor: Tensor | None) -> dict[str, Any] | None:
        if tensor is None:
            return None
        assert tensor.is_contiguous()  # vectors, and an embedding that kernels read
        num_bytes = tensor.numel() * tensor.element_size()
        kind = str(tensor.dtype).removeprefix("torch.")
        return {"at": self._place(tensor.data_ptr(), num_bytes), "dtype": kind, "shape": list(tensor.shape)}

    def _place(self, address: int, num_bytes: int) -> int:
        """Return where bytes will lie in the file."""
        at = -(-self.num_bytes // ALIGNMENT) * ALIGNMENT
        if num_bytes:
            self._parts.append((at, memoryview((ctypes.c_uint8 * num_bytes).from_address(address)).cast("B")))
        self.num_bytes = at + num_bytes
        return at


def _blocks(parts: Iterable[tuple[int, memoryview]]) -> Iterator[bytes]:
    """Yield bytes at their places in whole blocks, zeros between them."""
    block, first = bytearray(), 0
    for at, part in parts:
        block += bytes(at - first - len(block))  # less than a block, as parts follow each other
        while len(part):
            fits = _BLOCK - len(block)
            block += part[:fits]
            part = part[fits:]
            if len(block) == _BLOCK:
                yield bytes(block)
                block, first = bytearray(), first + _BLOCK
    if block:
        yield bytes(block.ljust(_BLOCK, b"\0"))


def _sums(words: np.ndarray[Any, np.dtype[np.uint64]]) -> list[int]:
    """Return the sum of each block's 64-bit words, modulo 2^64."""
    return [int(total) for total in words.reshape(-1, _BLOCK // 8).sum(1, dtype=np.uint64)]


# Reading


def _open(library: ctypes.CDLL, path: Path) -> tuple[Weights, list[str]]:
    """Return the weights of a file; what a damaged one ends in is an error of many kinds."""
    record, size = _record(path)
    storage: Any = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
    data = torch.empty(0, dtype=torch.uint8).set_(storage)
    library.outpace_advise(data.data_ptr(), size)
    before = _faults()
    if _sums(data.numpy().view(np.uint64)) != record["sums"]:
        raise ValueError("a block is not what was written")
    if _faults() - before > _MOST_FAULTS * (size // _BLOCK):  # no huge pages: kernels would read them slower
        mapped, data = data, empty_buffer(library, size)
        data.copy_(mapped)
    reader = _Reader(data)
    head = reader.matrix(record["head"])
    weights = Weights(reader.tensor(record["embed"]), [reader.layer(layer) for layer in record["layers"]], head)
    weights.final_norm = reader.norm(record["final_norm"])
    if record["is_tied"]:
        weights.table = head
    elif record["table"] is not None:
        weights.table = reader.matrix(record["table"])
    return weights, record["notes"]


def _record(path: Path) -> tuple[dict[str, Any], int]:
    """Return a file's description and the bytes of its blocks."""
    end = 32 + 8 + len(_MAGIC)
    with path.open("rb") as file:
        whole = file.seek(0, os.SEEK_END)
        file.seek(-end, os.SEEK_END)
        tail = file.read(end)
        length = int.from_bytes(tail[32:40], "little")
        size = whole - end - length
        if tail[40:] != _MAGIC or size <= 0 or size % _BLOCK:
            raise ValueError("it was cut, or is another file")
        file.seek(size)
        text = file.read(length)
    if hashlib.sha256(text).digest() != tail[:32]:
        raise ValueError("its description is not what was written")
    record: dict[str, Any] = json.loads(text)
    return record, size


def _faults() -> int:
    """Return how often this thread waited for a page."""
    import resource  # not on Windows, where no kernels are built

    used = resource.getrusage(getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF))
    return used.ru_minflt + used.ru_majflt


@dataclass(slots=True)
class _Reader:
    """Makes parts of weights of their descriptions.

    Attributes:
        data: the blocks, uint8.
    """

    data: Tensor

    def layer(self, described: dict[str, Any]) -> LayerWeights:
        """Return a layer."""
        kinds: dict[str, Callable[[Any], Any]] = dict.fromkeys(("qkv", "o", "up", "down"), self.matrix)
        kinds |= {"q_norm": self.tensor, "k_norm": self.tensor}
        return LayerWeights(**{name: kinds.get(name, self.norm)(part) for name, part in described.items()})

    def matrix(self, described: dict[str, Any]) -> Matrix:
        """Return a packed matrix."""
        at, num_bytes, table = described["at"], described["num_bytes"], described["table"]
        panels = self.data[at : at + num_bytes]
        if len(panels) != num_bytes or at % ALIGNMENT:
            raise ValueError("a matrix lies outside the file")
        coding = Coding(**dict(zip(_CODING, described["coding"], strict=True)))
        kept = [panels]
        if table is not None:
            kept.append(torch.tensor(table, dtype=torch.uint8))
            coding.table = kept[1].data_ptr()
        matrix = Matrix(torch.empty(described["shape"], device="meta"), self.tensor(described["bias"]))
        matrix.release()
        matrix.panels = Panels(MatrixView(coding, panels.data_ptr()), num_bytes, kept)
        return matrix

    def norm(self, described: list[Any] | None) -> Norm | None:
        """Return a norm, or None."""
        return None if described is None else Norm(*(self.tensor(part) for part in described))

    def tensor(self, described: dict[str, Any] | None) -> Any:
        """Return a plain tensor, or None."""
        if described is None:
            return None
        dtype, shape, at = getattr(torch, described["dtype"]), described["shape"], described["at"]
        return self.data[at : at + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
