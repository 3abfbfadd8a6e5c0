"""Reading safetensors files: a checked header, and tensors read straight into their place.

No memory map: a mapped file counts as memory of the process while it is read, and here every byte is wanted once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.models.quantised import Quantised
from outpace.models.rounded import SCALE, expand

__all__ = ["Entry", "TensorFiles", "check_stored", "find_tensor_files", "one_thread", "read_bytes"]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,  # powers of two
}
FLOATS = ("F64", "F32", "F16", "BF16")  # what weights are computed from
MAX_HEADER = 100_000_000  # bytes, as in the safetensors library
AGAIN = "Delete it and fetch the model again."
OTHER_CONFIG = "The files are not of this config.json."
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies."""

    path: Path
    offset: int
    num_bytes: int
    dtype: str
    shape: tuple[int, ...]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread while in the block.

    Steps on single matrices are so short that threads wait for each other, and for long where cores are busy: loading
    takes a fifth of the CPU time so, and a tenth of the time beside other processes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def find_tensor_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a model directory: the whole one, those of its index, or the only ones there are.

    An index beside model.safetensors is left from another save; transformers reads the file too.
    """
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        names = sorted(set(_read_index(index).values()))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise ModelError(f"{directory} lacks {missing[0]}, which its index names.", hint="Fetch the model again.")
        return [directory / name for name in names]
    found = sorted(directory.glob("*.safetensors"))
    if found:
        return found
    if any(path.suffix in PICKLES for path in directory.iterdir()):
        raise ModelError(
            f"{directory} holds only pickled weights, which can run code when they are opened.",
            hint="Save the model as safetensors first (transformers: save_pretrained).",
        )
    raise ModelError(f"{directory} holds no weights.", hint="A model directory has a model.safetensors in it.")


def check_stored(paths: Iterable[Path], config: Mapping[str, Any]) -> None:
    """Refuse quantised matrices that no `quantization_config` explains: transformers would read them as plain numbers.

    Raises:
        ModelError: a matrix is stored as integers or in fewer than 16 bits; the files cannot be read.
    """
    if config.get("quantization_config"):
        return
    for name, entry in TensorFiles(paths).entries.items():
        is_matrix = name.endswith("weight") and len(entry.shape) > 1
        if is_matrix and entry.dtype not in FLOATS:
            raise _quantised(name, entry)


def _quantised(name: str, entry: Entry) -> ModelError:
    return ModelError(
        f"Tensor {name} is stored as {entry.dtype}: quantised numbers, which mean nothing without their scales.",
        hint="Use the unquantised checkpoint.",
    )


def _read_index(path: Path) -> dict[str, str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if all(os.path.basename(name) == name for name in names.values()):
            return dict(names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ModelError(f"{path} is not a safetensors index.", hint=AGAIN)


def _read_header(path: Path) -> dict[str, Entry]:
    """Return the tensors of one file; every offset is checked against the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise ModelError(f"{path} is truncated or is not a safetensors file.", hint=AGAIN)
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = {name: _entry(path, 8 + length, facts) for name, facts in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ModelError(f"{path} has a damaged header.", hint=AGAIN) from None
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if entry.offset != end or entry.num_bytes < 0:
            raise ModelError(f"{path} has overlapping or missing bytes at {name}.", hint=AGAIN)
        end = entry.offset + entry.num_bytes
    if end != size:
        raise ModelError(f"{path} has {size} bytes where its header promises {end}.", hint=AGAIN)
    return entries


def _entry(path: Path, base: int, facts: dict[str, Any]) -> Entry:
    first, last = facts["data_offsets"]
    shape = tuple(int(n) for n in facts["shape"])
    dtype = facts["dtype"]
    if dtype in DTYPES and prod(shape) * DTYPES[dtype].itemsize != last - first:
        raise ValueError("shape and bytes disagree")
    return Entry(path, base + first, last - first, dtype, shape)


class TensorFiles:
    """The tensors of several safetensors files by name. Remembers which were read."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.entries: dict[str, Entry] = {}
        self.used: set[str] = set()
        for path in paths:
            for name, entry in _read_header(path).items():
                if name in self.entries:
                    raise ModelError(f"{name} is in {self.entries[name].path.name} and in {path.name}.", hint=AGAIN)
                self.entries[name] = entry

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def stored_dtype(self) -> str:
        """Return the floating dtype that most bytes are stored in, by torch's name; "float32" where there is none."""
        size: dict[str, int] = {}
        for name, entry in self.entries.items():
            if self._is_scale(name):
                continue
            size[entry.dtype] = size.get(entry.dtype, 0) + entry.num_bytes
        names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
        found = [kind for kind in sorted(size, key=lambda kind: -size[kind]) if kind in names]
        return names[found[0]] if found else "float32"

    def num_values(self) -> int:
        """Return how many numbers the tensors stand for."""
        return sum(prod(entry.shape) for name, entry in self.entries.items() if not self._is_scale(name))

    def quantised_kinds(self) -> list[str]:
        """Return how quantised matrices are stored, that of most bytes first; empty where all are plain."""
        return []

    def unused(self) -> list[str]:
        """Return the names that nobody read."""
        return sorted(set(self.entries) - self.used)

    @property
    def notes(self) -> list[str]:
        """What a result should say of these files."""
        return []

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor in the file's own dtype; it has to have this shape.

        A matrix of bytes with a scale per row (`outpace.models.rounded`) becomes float32.
        """
        if self._is_scale(name + SCALE):
            return expand(self.take(name, shape, ("I8",)), self.take(name + SCALE, shape[:1], ("F32",)))
        return self.take(name, shape, FLOATS)

    def _is_scale(self, name: str) -> bool:
        """Return whether a tensor holds the scales of the matrix that its name begins with."""
        matrix = self.entries.get(name.removesuffix(SCALE))
        return name.endswith(SCALE) and name in self.entries and matrix is not None and matrix.dtype == "I8"

    def read_quantised(self, name: str, shape: tuple[int, ...]) -> Quantised | None:
        """Return a matrix's codes; None = `read` gives it, as always here."""
        del name, shape
        return None

    def take(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> Tensor:
        """Return a tensor as it is stored.

        Args:
            name: the tensor.
            shape: that it has to have.
            dtypes: one of which it has to have, by their names in the file.

        Raises:
            ModelError: it is missing, or is another.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise ModelError(f"Tensor {name} is missing; {list(shape)} was expected.", hint=OTHER_CONFIG)
        if entry.shape != shape:
            raise ModelError(
                f"Tensor {name} has shape {list(entry.shape)}; {list(shape)} was expected.", hint=OTHER_CONFIG
            )
        if entry.dtype not in dtypes:
            if dtypes == FLOATS:
                raise _quantised(name, entry)
            raise ModelError(f"Tensor {name} is stored as {entry.dtype}, not as {' or '.join(dtypes)}.", OTHER_CONFIG)
        self.used.add(name)
        tensor = torch.empty(shape, dtype=DTYPES[entry.dtype])
        if entry.num_bytes:
            _fill(tensor, entry)
        return tensor


def read_bytes(entry: Entry) -> Tensor:
    """Return the bytes of one tensor [num_bytes] uint8."""
    raw = torch.empty(entry.num_bytes, dtype=torch.uint8)
    _fill(raw, entry)
    return raw


def _fill(tensor: Tensor, entry: Entry) -> None:
    with entry.path.open("rb", buffering=0) as file:
        file.seek(entry.offset)
        view = memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        while view:
            count = file.readinto(view)
            if not count:
                raise ModelError(f"{entry.path} ended while it was read.", hint=AGAIN)
            view = view[count:]
