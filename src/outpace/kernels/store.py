"""Files in a cache folder that other processes share: whole or not there, each beside the hash of what it holds.

A library that lost its end loads, and kills the process when a missing page is touched; so nothing is trusted that does
not have the size and hash written beside it. The hash file reads `SHA-256  size  name`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["is_whole", "locked", "save"]


def is_whole(path: Path) -> bool:
    """Return whether a file is there and holds what was saved; one without a hash, or that cannot be read, does not."""
    try:
        expected = _seal(path).read_text(encoding="utf-8")
        if expected.split()[1] != str(path.stat().st_size):
            return False
        return expected == _stated(path.name, path.read_bytes())
    except (OSError, ValueError, IndexError):
        return False


def save(path: Path, content: bytes) -> None:
    """Write a file and its hash, so that readers see the old content, none, or all of it, even after a power cut.

    Between the two renames a reader finds a hash that does not fit, takes the lock and looks again.

    Raises:
        OSError: the folder cannot be written, or the disk is full; what was there stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, content)
    _replace(_seal(path), _stated(path.name, content).encode())
    _sync_folder(path.parent)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock while in the block; the system releases it should the process die.

    A file system without locks gives none: two builders then do the work twice, and each one's file is whole.

    Raises:
        OSError: the lock file cannot be made.
    """
    import fcntl  # not on Windows, where there is no libgomp to link either

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _seal(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _stated(name: str, content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}  {len(content)}  {name}\n"


def _replace(path: Path, content: bytes) -> None:
    """Write beside the file and rename: the name holds the process, as its threads take turns under the lock."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        # Not `tempfile`, whose files nobody else may read: a shared folder's files have the mode that the umask leaves.
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems refuse; the names then last as long as they do
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
