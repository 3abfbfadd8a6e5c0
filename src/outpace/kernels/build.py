"""Build the C++ of this folder once per machine and load it; say why when that is impossible.

The library lies in the user's cache folder under a hash of everything it depends on: source, flags, compiler version,
CPU and the OpenMP runtime it links. It links the runtime that torch has loaded, so that both use one pool of threads.
A damaged library is built anew (see `outpace.store`); a folder that cannot be written costs a build per process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from outpace import store

__all__ = ["Built", "build"]

SOURCE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
SHARED = ("-shared", "-fPIC")
MACHINE = "-march=native"
TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Built:
    """A loaded library, or None and the reason; `warning` says what a user should put right though it works."""

    library: ctypes.CDLL | None
    note: str
    warning: str = ""


def build(machine: str = MACHINE) -> Built:
    """Return the library for this machine, building it when the cache has none.

    Args:
        machine: the compiler's architecture flag; tests pass an older one to build the fall-back code.
    """
    if os.environ.get("OUTPACE_COMPILED", "1") == "0":
        return Built(None, "compiled kernels are switched off by OUTPACE_COMPILED=0")
    told = tuple(map(os.environ.get, ("OUTPACE_CACHE", "XDG_CACHE_HOME", "HOME")))
    return _build(machine, _folder(told))


@functools.lru_cache(maxsize=4)
def _folder(told: tuple[str | None, ...]) -> str:
    """Return the cache folder by what its place depends on: each drafted tree asks, and working it out takes longer."""
    del told
    return str(store.cache_folder())


@functools.lru_cache(maxsize=4)
def _build(machine: str, folder: str) -> Built:
    compiler = _compiler()
    if compiler is None:
        return Built(None, "no C++ compiler was found (g++, c++ or clang++)")
    runtime = _openmp()
    if runtime is None:
        return Built(None, "torch ships no libgomp here, and a second pool of threads would compete with its own")
    flags = (*FLAGS, machine, *SHARED)
    try:
        target = Path(folder) / f"decoder-{_key(compiler, flags, runtime)}.so"
        return _open(target) if store.is_whole(target) else _make(target, [compiler, *flags], runtime)
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        return Built(None, f"compiled kernels could not be built: {detail.strip().splitlines()[0]}")


def _compiler() -> str | None:
    wanted = [os.environ.get("CXX", ""), "g++", "c++", "clang++"]
    return next((path for name in wanted if name and (path := shutil.which(name))), None)


def _openmp() -> Path | None:
    """Return torch's libgomp; its name carries a hash in some wheels."""
    root = Path(torch.__file__).parent
    places = (root / "lib", root.parent / "torch.libs")
    return next((path for place in places for path in sorted(place.glob("libgomp*.so*"))), None)


def _key(compiler: str, flags: tuple[str, ...], runtime: Path) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    parts = [version.stdout, " ".join(flags), str(runtime), _cpu()]
    parts += [path.read_text(encoding="utf-8") for path in sorted(SOURCE.glob("*.h"))]
    parts += [path.read_text(encoding="utf-8") for path in sorted(SOURCE.glob("*.cpp"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def _cpu() -> str:
    """Return what -march=native looks at: a cache folder may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = ("flags", "Features", "model name", "model", "cpu family", "CPU part")
    return "\n".join(sorted({line for line in lines if line.split(":")[0].strip() in names}))


def _open(path: Path) -> Built:
    return Built(ctypes.CDLL(str(path)), f"compiled kernels: {path.name}")


def _make(target: Path, command: list[str], runtime: Path) -> Built:
    """Build the library and keep it; where that is impossible, load it from a folder that goes at once."""
    content = b""
    try:
        with store.locked(target.with_suffix(".lock")):
            if not store.is_whole(target):  # another process may have been first
                content = _compile(command, runtime)
                store.save(target, content)
        return _open(target)
    except OSError as error:
        reason = f"{target.parent} cannot keep compiled kernels ({error.strerror or error})"
    content = content or _compile(command, runtime)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / target.name
        path.write_bytes(content)
        warning = f"{reason}: every start builds them anew. Let OUTPACE_CACHE name a folder that can be written."
        return replace(_open(path), warning=warning)


def _compile(command: list[str], runtime: Path) -> bytes:
    """Return a freshly built library; the user is told what the wait is for."""
    _tell("outpace: compiling kernels for this machine; this takes some 20 s and is done once.")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "decoder.so"
        sources = [str(path) for path in sorted(SOURCE.glob("*.cpp"))]
        parts = [*command, *sources, "-o", str(made), str(runtime), f"-Wl,-rpath,{runtime.parent}"]
        subprocess.run(parts, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
        return made.read_bytes()


def _tell(line: str) -> None:
    """Write to standard error, whatever becomes of standard output; nobody may be listening."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
