"""The user's cache folder and its files, which other processes share: whole or not there, beside their hashes.

A library that lost its end loads, and kills the process when a missing page is touched; so nothing is trusted that does
not have the size and hash written beside it. The hash file reads `SHA-256  size  name`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from outpace.errors import ConfigError

__all__ = [
    "PACKED_LIMIT",
    "cache_folder",
    "clear_packed",
    "is_whole",
    "list_packed",
    "locked",
    "packed_folder",
    "packed_limit",
    "replacing",
    "save",
]

PACKED_LIMIT, _DEFAULT_GB = "OUTPACE_PACKED_GB", 8.0


def cache_folder() -> Path:
    """Return where lies what can be made or fetched again: OUTPACE_CACHE, or `outpace` in the user's cache folder."""
    own = os.environ.get("OUTPACE_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(shared) if shared else Path.home() / ".cache") / "outpace"
    except RuntimeError:  # a user without a home, as in some containers: nothing is kept there
        return Path(os.sep) / ".cache" / "outpace"


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
    for target, held in ((path, content), (_seal(path), _stated(path.name, content).encode())):
        with replacing(target) as file:
            file.write(held)
    _sync_folder(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes a path's place if the block ends well, and goes if it does not.

    Raises:
        OSError: it cannot be written, or the disk is full; what was there stays.
    """
    # Written beside it and renamed: the name holds the process, as its threads take turns under a lock.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        # Not `tempfile`, whose files nobody else may read: a shared folder's files have the mode that the umask leaves.
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an exclusive lock while in the block; the system releases it should the process die.

    A system without such locks gives none: two processes then do the work twice, and each one's file is whole.

    Args:
        path: the lock file, which stays.
        on_wait: called once where another process holds it.

    Raises:
        OSError: the lock file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl  # not on Windows

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _seal(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _stated(name: str, content: bytes) -> str:
    return f"{hashlib.sha256(content).hexdigest()}  {len(content)}  {name}\n"


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # some file systems refuse; the names then last as long as they do
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# Packed weights, which `outpace.kernels.shelf` writes


def packed_folder() -> Path:
    """Return where packed weights are kept."""
    return cache_folder() / "packed"


def packed_limit() -> int:
    """Return how many bytes may be kept: OUTPACE_PACKED_GB (10^9 bytes each; 0 = nothing), or 8 GB.

    Raises:
        ConfigError: the variable holds something else.
    """
    stated = os.environ.get(PACKED_LIMIT) or str(_DEFAULT_GB)
    with contextlib.suppress(ValueError):
        if 0 <= (gigabytes := float(stated)) < math.inf:
            return int(gigabytes * 1e9)
    raise ConfigError(f"{PACKED_LIMIT} is {stated!r}.", "It is a number of gigabytes, 0 = no packed weights are kept.")


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
