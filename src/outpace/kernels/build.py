"""Build the C++ of this folder once per machine and load it; say why when that is impossible.

The library lies in the user's cache folder under a hash of everything it depends on: source, flags, compiler version,
CPU and the OpenMP runtime it links. It links the runtime that torch has loaded, so that both use one pool of threads.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Built", "build", "cache_folder"]

SOURCE = Path(__file__).parent
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
SHARED = ("-shared", "-fPIC")
MACHINE = "-march=native"
TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Built:
    """A loaded library, or None and the reason."""

    library: ctypes.CDLL | None
    note: str


def cache_folder() -> Path:
    """Return where libraries are kept: OUTPACE_CACHE, or `outpace` in the user's cache folder."""
    own = os.environ.get("OUTPACE_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "outpace"


def build(machine: str = MACHINE) -> Built:
    """Return the library for this machine, building it when the cache has none.

    Args:
        machine: the compiler's architecture flag; tests pass an older one to build the fall-back code.
    """
    if os.environ.get("OUTPACE_COMPILED", "1") == "0":
        return Built(None, "compiled kernels are switched off by OUTPACE_COMPILED=0")
    return _build(machine, str(cache_folder()))


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
        if not target.exists():
            _compile(compiler, flags, runtime, target)
        return Built(ctypes.CDLL(str(target)), f"compiled kernels: {target.name}")
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


def _compile(compiler: str, flags: tuple[str, ...], runtime: Path, target: Path) -> None:
    """Build into a file of our own and rename it: two builders at worst do the work twice, none sees half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_suffix(".lock")):
        if target.exists():  # another process was first
            return
        handle, name = tempfile.mkstemp(suffix=".so", dir=target.parent)
        os.close(handle)
        try:
            command = [compiler, *flags, str(SOURCE / "decoder.cpp"), "-o", name, str(runtime)]
            command.append(f"-Wl,-rpath,{runtime.parent}")
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
            os.replace(name, target)
        finally:
            Path(name).unlink(missing_ok=True)


class _locked:
    """Hold an exclusive lock on a file while in the block; released by the system should the process die."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        import fcntl  # not on Windows, where there is no libgomp to link either

        self.file = open(self.path, "w", encoding="utf-8")
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self.file.close()
