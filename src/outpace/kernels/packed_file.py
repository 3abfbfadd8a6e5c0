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
from outpace.models.weights import LayerWeights, Matrix, Norm, Weights

__all__ = ["Described", "open_packed"]

BLOCK = 2 << 20
MOST_FAULTS = 4  # per block; small pages are mapped some 16 at a time, which makes 32
_MAGIC = b"outpace packed 1"
_CODING = ("bits", "group", "factors", "has_shift", "zero")
_TABLE = 16  # entries of a table of codes, as of 4 bits


# Writing


class Described:
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
        return -(-self.num_bytes // BLOCK) * BLOCK

    def file(self) -> Iterator[bytes | bytearray]:
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


def open_packed(library: ctypes.CDLL, path: Path) -> tuple[Weights, list[str]]:
    """Return the weights of a file; what a damaged one ends in is an error of many kinds."""
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

    def layer(self, described: dict[str, Any]) -> LayerWeights:
        """Return a layer."""
        parts: dict[str, Any] = {}
        for name, part in described.items():
            if name in ("qkv", "o", "up", "down"):
                parts[name] = self.matrix(part)
            else:
                parts[name] = self.tensor(part) if name in ("q_norm", "k_norm") else self.norm(part)
        return LayerWeights(**parts)

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
