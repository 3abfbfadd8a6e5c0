"""Packed weights kept between starts: written once beside the compiled kernels, mapped by every later start.

A mapped file is shared by all processes that read it and costs no copy. A file is found by what its bytes depend on:
the model's files, told by size, inode, both time stamps and the bytes at both ends (any write sets the time of the last
change, which no program can choose; hashing all of them would take as long as packing), the decoder's shape, dtype,
kernels, and the code that reads and packs. Files that changed a moment ago are not believed: clocks are coarse.

What the file holds is checked at every start; see `packed_file`.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import functools
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from outpace import store
from outpace.kernels.decoder import DTYPES, supports
from outpace.kernels.library import load, note
from outpace.kernels.packed_file import Described, open_packed
from outpace.models.spec import Spec
from outpace.models.weights import Weights

__all__ = ["Shelf", "open_shelf"]

SMALLEST = 32 << 20  # bytes of packed weights; fewer are packed in no time
SETTLED_S = 2.0  # a file that has not changed for so long will show the next change


def open_shelf(spec: Spec, dtype: torch.dtype, sources: Iterable[Path], variant: str) -> Shelf | None:
    """Return the place of a model's packed weights; None where they cannot be kept, or are not to be.

    Args:
        spec: the decoder's shape.
        dtype: of plain matrices.
        sources: all files that its weights are made of, settings included.
        variant: what else decides how they are read.
    """
    library = load() if dtype in DTYPES and supports(spec) and store.packed_limit() else None
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
        self.path = store.packed_folder() / f"{self.key}.weights"

    def find(self) -> tuple[list[Weights], list[str]] | None:
        """Return packed weights, side by side, and the notes that were put there with them; None where there are none.

        A damaged file is removed, and stands for none.
        """
        try:
            found = open_packed(self._library, self.path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError):
            with contextlib.suppress(OSError):
                self.path.unlink()
            return None
        with contextlib.suppress(OSError):  # a folder of others may be read and not written
            os.utime(self.path)  # used now
        return found

    def put(self, sides: Sequence[Weights], notes: Sequence[str]) -> str:
        """Keep packed weights for later starts; return what a user should know if that fails, else an empty text."""
        described = Described(sides, notes)
        is_worth = described.num_bytes >= SMALLEST and described.size <= store.packed_limit()
        if not is_worth or self._find_key() != self.key:
            return ""
        try:
            with store.locked(store.packed_folder() / "lock", on_wait=_leave):
                self._put(described)
        except _Busy:  # another process writes; it may be this very file
            return ""
        except OSError as error:
            reason = f"{store.packed_folder()} cannot keep packed weights ({error.strerror or error})"
            return f"{reason}: every start packs them anew. {store.PACKED_LIMIT}=0 does not try."
        return ""

    def _put(self, described: Described) -> None:
        for left in store.packed_folder().glob(
            "*.part"
        ):  # of a process that was killed: here, under the lock, nobody writes
            left.unlink(missing_ok=True)
        if self.path.exists():
            return
        if shutil.disk_usage(store.packed_folder()).free < 2 * described.size:
            raise OSError(errno.ENOSPC, "they would take more than half of what is free there")
        kept = store.list_packed()
        room = store.packed_limit() - described.size - sum(size for _, size in kept)
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
    files = [*sorted(root.glob("models/**/*.py")), *sorted(root.glob("kernels/*.py")), root / "text" / "gguf_file.py"]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
