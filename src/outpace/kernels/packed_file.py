"""The file that packed weights are kept in, written block by block and mapped.

It is blocks of 2 MB, written whole so that the page cache holds them as huge pages, then a description with the sum of
each block and a hash of its own. All of it is checked when it is opened: the sums are as quick as memory is read.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outpace.kernels.decoder import ALIGNMENT, Panels
from outpace.kernels.library import Coding, MatrixView, empty_buffer
from outpace.models.weights import CrossWeights, LayerWeights, Matrix, Norm, Weights

__all__ = ["Described", "open_packed"]

BLOCK = 2 << 20
MOST_FAULTS = 4  # per block; small pages are mapped some 16 at a time, which makes 32
_MAGIC = b"outpace packed 2"
_CODING = ("bits", "group", "factors", "has_shift", "zero")
_TABLE = 16  # entries of a table of codes, as of 4 bits


# Writing


class Described:
    """Weights as a description that JSON holds, and the bytes that it speaks of.

    Args:
        sides: of a decoder, or of an encoder and a decoder; what they share is held once.
        notes: told again to whoever opens the file.
    """

    def __init__(self, sides: Sequence[Weights], notes: Sequence[str]) -> None:
        self.num_bytes = 0
        self._parts: list[tuple[int, memoryview]] = []
        self._places: dict[tuple[int, int], int] = {}
        self._kept = sides
        self._record = {"notes": list(notes), "sides": [self._side(weights) for weights in sides]}

    def _side(self, weights: Weights) -> dict[str, Any]:
        is_tied = weights.table is weights.head or (weights.table is None and not weights.embed.numel())
        return {
            "embed": self._tensor(weights.embed),
            "head": self._matrix(weights.head) if weights.head.shape[0] else None,
            "table": None if is_tied or weights.table is None else self._matrix(weights.table),
            "is_tied": is_tied,
            "final_norm": self._norm(weights.final_norm),
            "embed_norm": self._norm(weights.embed_norm),
            "positions": self._tensor(weights.positions),
            "layers": [self._parts_of(layer) for layer in weights.layers],
        }

    @property
    def size(self) -> int:
        """Bytes of all blocks."""
        return -(-self.num_bytes // BLOCK) * BLOCK

    def file(self) -> Iterator[bytes | bytearray]:
        """Yield what the file holds, block by block."""
        sums = []
        for block in _blocks(self._parts):
            sums.append(_sums(np.frombuffer(block, np.uint64))[0])
            yield block
        text = json.dumps({**self._record, "sums": sums}).encode()
        yield text + hashlib.sha256(text).digest() + len(text).to_bytes(8, "little") + _MAGIC

    def _parts_of(self, layer: LayerWeights | CrossWeights) -> dict[str, Any]:
        described: dict[str, Any] = {}
        for field in dataclasses.fields(layer):
            part = getattr(layer, field.name)
            if isinstance(part, Matrix):
                described[field.name] = self._matrix(part)
            elif isinstance(part, CrossWeights):
                described[field.name] = self._parts_of(part)
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
        assert tensor.is_contiguous()  # vectors, tables, and an embedding that kernels read
        num_bytes = tensor.numel() * tensor.element_size()
        kind = str(tensor.dtype).removeprefix("torch.")
        return {"at": self._place(tensor.data_ptr(), num_bytes), "dtype": kind, "shape": list(tensor.shape)}

    def _place(self, address: int, num_bytes: int) -> int:
        """Return where bytes will lie in the file: once, whoever shares them."""
        if num_bytes and (address, num_bytes) in self._places:
            return self._places[address, num_bytes]
        at = -(-self.num_bytes // ALIGNMENT) * ALIGNMENT
        self._places[address, num_bytes] = at
        if num_bytes:
            self._parts.append((at, memoryview((ctypes.c_uint8 * num_bytes).from_address(address)).cast("B")))
        self.num_bytes = at + num_bytes
        return at


def _blocks(parts: Iterable[tuple[int, memoryview]]) -> Iterator[bytearray]:
    """Yield bytes at their places in whole blocks, zeros between them."""
    block, first = bytearray(), 0
    for at, part in parts:
        block += bytes(at - first - len(block))  # less than a block, as parts follow each other
        while len(part):
            fits = BLOCK - len(block)
            block += part[:fits]
            part = part[fits:]
            if len(block) == BLOCK:
                yield block
                block, first = bytearray(), first + BLOCK
    if block:
        yield block.ljust(BLOCK, b"\0")


def _sums(words: np.ndarray[Any, np.dtype[np.uint64]]) -> list[int]:
    """Return the sum of each block's 64-bit words, modulo 2^64."""
    return [int(total) for total in words.reshape(-1, BLOCK // 8).sum(1, dtype=np.uint64)]


# Reading


def open_packed(library: ctypes.CDLL, path: Path) -> tuple[list[Weights], list[str]]:
    """Return the weights of a file, side by side; what a damaged one ends in is an error of many kinds."""
    record, size = _record(path)
    storage: Any = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
    data = torch.empty(0, dtype=torch.uint8).set_(storage)
    library.outpace_advise(data.data_ptr(), size)
    before = _faults()
    if _sums(data.numpy().view(np.uint64)) != record["sums"]:
        raise ValueError("a block is not what was written")
    if _faults() - before > MOST_FAULTS * (size // BLOCK):  # no huge pages: kernels would read them slower
        mapped, data = data, empty_buffer(library, size)
        data.copy_(mapped)
    reader = _Reader(data)
    return [reader.side(described) for described in record["sides"]], record["notes"]


def _record(path: Path) -> tuple[dict[str, Any], int]:
    """Return a file's description and the bytes of its blocks."""
    end = 32 + 8 + len(_MAGIC)
    with path.open("rb") as file:
        whole = file.seek(0, os.SEEK_END)
        file.seek(-end, os.SEEK_END)
        tail = file.read(end)
        length = int.from_bytes(tail[32:40], "little")
        size = whole - end - length
        if tail[40:] != _MAGIC or size <= 0 or size % BLOCK:
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

    def side(self, described: dict[str, Any]) -> Weights:
        """Return the weights of a decoder or of an encoder."""
        embed = self.tensor(described["embed"])
        head = Matrix(embed[:0]) if described["head"] is None else self.matrix(described["head"])
        weights = Weights(embed, [LayerWeights(**self.parts(layer)) for layer in described["layers"]], head)
        weights.final_norm, weights.embed_norm = (self.norm(described[n]) for n in ("final_norm", "embed_norm"))
        weights.positions = self.tensor(described["positions"])
        if described["is_tied"]:
            weights.table = head
        elif described["table"] is not None:
            weights.table = self.matrix(described["table"])
        return weights

    def parts(self, described: dict[str, Any]) -> dict[str, Any]:
        """Return the parts of a layer, or of what looks at an encoder in one, each told by what describes it."""
        parts: dict[str, Any] = {}
        for name, part in described.items():
            if isinstance(part, list):
                parts[name] = self.norm(part)
            elif part is None or "dtype" in part:
                parts[name] = self.tensor(part)
            else:
                parts[name] = self.matrix(part) if "coding" in part else CrossWeights(**self.parts(part))
        return parts

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
        dtype: torch.dtype = getattr(torch, described["dtype"])
        shape, at = described["shape"], described["at"]
        return self.data[at : at + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
