"""What a measurement was made on: processor, load, versions, commit; and a lock, so that two never run at once."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from outpace.errors import OutpaceError

__all__ = ["BUSY", "describe", "lock", "lock_file", "peak_memory", "process_memory", "synchronise"]

BUSY = 0.5  # load average above which the machine was not quiet
_WANTED_FLAGS = ("avx2", "avx512", "amx", "fma", "f16c", "asimd", "sve", "bf16", "i8mm")


def lock_file() -> Path:
    """Return the file that a running benchmark holds: OUTPACE_BENCH_LOCK, or one in the system's temporary folder."""
    return Path(os.environ.get("OUTPACE_BENCH_LOCK") or Path(tempfile.gettempdir()) / "outpace-bench.lock")


@contextmanager
def lock(wait_s: float = 0.0) -> Iterator[None]:
    """Hold the machine's benchmark lock while in the block.

    Args:
        wait_s: how long to wait for the holder to end.

    Raises:
        OutpaceError: another benchmark still holds it.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    path = lock_file()
    with open(path, "a+", encoding="utf-8") as file:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    raise OutpaceError(
                        f"Another benchmark runs on this machine (process {holder}).", "Wait until it ends."
                    ) from None
                time.sleep(min(1.0, max(0.01, deadline - time.monotonic())))
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            file.seek(0)
            file.truncate()


def describe(device: str = "cpu") -> dict[str, Any]:
    """Return the machine, its load and the software as JSON-ready values; call it before measuring."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else (0.0, 0.0, 0.0)
    cpu = _cpu_facts()
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu.get("model name", platform.processor()),
        "cpu_flags": sorted(f for f in cpu.get("flags", "").split() if any(w in f for w in _WANTED_FLAGS)),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(value, 2) for value in load],
        "is_busy": load[0] > BUSY,
        "gpu": gpu,
        "gpu_note": "" if gpu else "GPU left out: " + _no_gpu(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "outpace": _version("outpace"),
        "commit": _commit(),
    }


def peak_memory() -> int:
    """Return the most memory this process ever held, in bytes.

    VmHWM where Linux tells it: ru_maxrss of a fresh process starts from what its parent held when it was forked.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def process_memory(pid: int) -> int:
    """Return the bytes in memory of a process and of all that it started; 0 where the system does not tell."""
    held, waiting = 0, [pid]
    while waiting:
        place = Path(f"/proc/{waiting.pop()}")
        try:
            pages = int((place / "statm").read_text(encoding="ascii").split()[1])
            held += pages * os.sysconf("SC_PAGE_SIZE")
            for task in (place / "task").iterdir():
                waiting += map(int, (task / "children").read_text(encoding="ascii").split())
        except (OSError, ValueError, IndexError):  # no such system, or it ended meanwhile
            continue
    return held


def synchronise(device: str) -> None:
    """Wait until everything asked of the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def _no_gpu() -> str:
    return "not asked for." if torch.cuda.is_available() else "torch sees no CUDA device."


def _cpu_facts() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    return {**facts, "flags": facts.get("flags", facts.get("Features", ""))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the checkout that this package runs from, with "+" when files were changed."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
