"""The cache of built kernels: what it keeps is whole, whatever happened to it, and what cannot be kept still works."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from outpace import store
from outpace.kernels import build as building

REAL = building.build()
pytestmark = pytest.mark.skipif(REAL.library is None, reason=REAL.note)

# A compiler that takes no time: it hands out the library that was really built, and counts.
COMPILER = """#!/bin/sh
[ "$1" = --version ] && {{ echo "copier 1"; exit; }}
while [ "$1" != -o ]; do shift; done
echo built >> {count}
cp {library} "$2"
"""


class Builder:
    """Builds into an empty cache folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self._count, self._compiler = folder / "cache", folder / "count", folder / "c++"
        library = store.cache_folder() / REAL.note.rpartition(" ")[2]
        self._compiler.write_text(COMPILER.format(count=self._count, library=library))
        self._compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(self._compiler))
        monkeypatch.setenv("OUTPACE_CACHE", str(self.cache))

    def __call__(self) -> building.Built:
        building._build.cache_clear()  # as another process would
        built = building.build()
        assert built.library is not None and built.library.outpace_forward, built.note
        return built

    @property
    def count(self) -> int:
        return len(self._count.read_text().splitlines()) if self._count.exists() else 0

    @property
    def library(self) -> Path:
        (found,) = self.cache.glob("*.so")
        return found


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    return Builder(tmp_path, monkeypatch)


def test_one_build_serves_all_later_ones_and_says_so_once(builder: Builder, capfd: pytest.CaptureFixture[str]) -> None:
    assert builder().warning == ""
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "compiling kernels" in said.err
    assert builder().warning == "" and builder.count == 1
    assert capfd.readouterr().err == ""
    assert not [path for path in builder.cache.iterdir() if path.suffix == ".part"]


def put(path: Path, content: bytes) -> None:
    path.unlink()  # the old file is still mapped into this process, which must not lose its pages
    path.write_bytes(content)


def seal(path: Path) -> Path:
    return Path(f"{path}.sha256")


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "cut": lambda path: put(path, path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: put(path, b""),
    "one bit": lambda path: put(path, flipped(path.read_bytes())),
    "longer": lambda path: put(path, path.read_bytes() + b"\0"),
    "gone": lambda path: path.unlink(),
    "other hash": lambda path: seal(path).write_text("0" * 64 + f"  {path.stat().st_size}  {path.name}\n"),
    "no hash": lambda path: seal(path).unlink(),
    "hash cut": lambda path: os.truncate(seal(path), 10),
    "hash is no text": lambda path: seal(path).write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_library_is_never_loaded_but_built_anew(name: str, builder: Builder) -> None:
    builder()
    whole = builder.library.read_bytes()
    DAMAGE[name](builder.library)
    assert builder().warning == "" and builder.count == 2
    assert builder.library.read_bytes() == whole
    assert builder() and builder.count == 2


def test_builders_that_start_together_build_once(builder: Builder) -> None:
    """Locks are per open file, so threads stand for processes here."""
    start, found = threading.Barrier(4), []

    def build() -> None:
        start.wait()
        found.append(building._build.__wrapped__(building.MACHINE, str(builder.cache)))

    started = [threading.Thread(target=build) for _ in range(4)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert [(built.library is not None, built.warning) for built in found] == [(True, "")] * 4
    assert builder.count == 1


def test_a_reader_sees_the_old_content_or_the_new_and_never_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Look at the name at every moment that a write or a rename leaves behind."""
    path, seen = tmp_path / "library", []
    store.save(path, b"old")
    for name in ("fsync", "replace"):
        plain = getattr(os, name)

        def watched(*args: object, plain: object = plain) -> None:
            plain(*args)
            seen.append((path.read_bytes(), store.is_whole(path)))

        monkeypatch.setattr(os, name, watched)
    store.save(path, b"new!")
    # Content flushed and renamed, then its hash: between the renames the new content is not trusted yet.
    expected = [(b"old", True), (b"new!", False), (b"new!", False), (b"new!", True)]
    assert seen[:4] == expected and set(seen[4:]) <= {(b"new!", True)}


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_have_the_mode_that_the_umask_leaves(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        store.save(tmp_path / "library", b"content")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o666 & ~umask}


def full(file: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("reason", ["not a folder", "full"])
def test_a_cache_that_keeps_nothing_costs_a_build_and_a_warning(
    reason: str, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "full":
        monkeypatch.setattr(os, "fsync", full)
    else:
        builder.cache.write_text("a file where the folder should be")
    for number in (1, 2):
        built = builder()
        assert "OUTPACE_CACHE" in built.warning and str(builder.cache) in built.warning
        assert builder.count == number
    assert not list(builder.cache.parent.glob("**/*.so"))
    building._build.cache_clear()


def test_nobody_listening_to_standard_error_is_no_failure(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert builder().library is not None
