"""How many threads a step takes: as many as torch may use, or fewer while other processes keep cores busy.

A team of threads advances at the pace of its slowest. Where two of them share a core with somebody else's work, one
always waits for the other's turn, and each step costs whole time slices: fewer threads are then many times faster.
What others use is read from the kernel's accounts a few times per second; time of processes of lower priority (`nice`)
counts as free, because they make way.

Only what computes the same bits with any number of threads may be steered (the compiled kernels do).
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from outpace.errors import ConfigError

__all__ = ["Account", "Steering", "begin", "fixed", "read_account", "shared"]

INTERVAL_S = 0.25  # between two looks at the accounts, which count in hundredths of a second
STALE_S = 5.0  # an account this old says little about now, unless it is the only one
_STAT, _GROUP = Path("/proc/stat"), Path("/sys/fs/cgroup")
_QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))  # of both versions of control groups


@dataclass(frozen=True, slots=True)
class Account:
    """What was used until a moment; only differences mean something.

    Attributes:
        at_s: the moment.
        cores: cores that this process may run on.
        free: of their seconds, those that nobody used or that a process of lower priority used.
        own: seconds that this process used.
    """

    at_s: float
    cores: int
    free: float
    own: float


def read_account() -> Account | None:
    """Return the account of the cores that this process may run on; None where the system keeps none."""
    try:
        cores = os.sched_getaffinity(0)
        lines = _STAT.read_text(encoding="ascii").splitlines()
        free = _free_seconds(lines, cores, makes_way=os.getpriority(os.PRIO_PROCESS, 0) <= 0)
    except (AttributeError, OSError, ValueError, IndexError):
        return None
    return Account(time.monotonic(), len(cores), free, time.process_time())


def _free_seconds(lines: Iterable[str], cores: set[int], makes_way: bool) -> float:
    """Sum idle time, waiting for disks, and what lower priorities used if they make way for this process."""
    wanted, ticks = {f"cpu{core}" for core in cores}, 0
    for line in lines:
        name, _, rest = line.partition(" ")
        if name in wanted:
            _user, low, _system, idle, waiting = (int(value) for value in rest.split()[:5])
            ticks += idle + waiting + (low if makes_way else 0)
    return ticks / os.sysconf("SC_CLK_TCK")


class Steering:
    """Follows the accounts; `count` is asked before every step.

    Args:
        read: returns the account of now.
        quota: cores' worth of time that a container grants; 0 = no limit.
        now: returns the time in seconds, as in the accounts.
    """

    def __init__(
        self,
        read: Callable[[], Account | None] = read_account,
        quota: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._quota, self._now = read, quota, now
        self._last = read()
        self._free = float(self._last.cores) if self._last is not None else 0.0
        self._is_first = True

    def count(self, most: int) -> int:
        """Return how many threads to take, from 1 to `most`."""
        if most <= 1:
            return most
        if self._last is not None and self._now() - self._last.at_s >= INTERVAL_S:
            self._look()
        # Rounded, so that two threads beside one busy process, which find 1.3 of two cores free, become one.
        return max(1, min(most, round(self._free) if self._last is not None else most, self._quota or most))

    def _look(self) -> None:
        last, self._last = self._last, self._read()
        if last is None or self._last is None:  # no account, no steering
            return
        seconds = self._last.at_s - last.at_s
        if seconds < STALE_S or self._is_first:
            self._free = (self._last.free - last.free + self._last.own - last.own) / seconds
        self._is_first = False


@contextlib.contextmanager
def shared(is_steered: bool) -> Iterator[None]:
    """Let torch and the compiled kernels use as many threads as are free, in this thread of Python, while in the block.

    Args:
        is_steered: whether to do so: False for what rounds otherwise with fewer threads.
    """
    most = torch.get_num_threads() if is_steered and not _is_fixed else 1
    count = _steering().count(most)
    if count == most:
        yield
        return
    limit = _limiter()
    limit(count)
    try:
        yield
    finally:
        limit(most)


@functools.lru_cache(maxsize=1)
def _steering() -> Steering:
    return Steering(quota=_read_quota())


@functools.lru_cache(maxsize=1)
def _limiter() -> Callable[[int], None]:
    """Return OpenMP's own setter, which holds for one thread; `torch.set_num_threads` would also bind new ones."""
    from outpace.kernels import load_library

    library = load_library()
    return torch.set_num_threads if library is None else library.omp_set_num_threads  # of the libgomp it links


def _read_quota() -> int:
    """Return the cores' worth of time that a container grants, rounded; 0 = no limit."""
    for names in _QUOTAS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit, and no number
            quota, period = " ".join((_GROUP / name).read_text(encoding="ascii") for name in names).split()
            return max(1, round(int(quota) / int(period))) if int(quota) > 0 else 0
    return 0


_is_fixed = False


def begin(threads: int | None = None) -> None:
    """Set how many threads this process uses from here on; None = as many as are free, which is watched from now on.

    Raises:
        ConfigError: fewer than one.
    """
    global _is_fixed
    if threads is None:
        _steering()
        return
    if threads < 1:
        raise ConfigError(f"threads is {threads}.", "Use 1 or more.")
    torch.set_num_threads(threads)
    _is_fixed = True


@contextlib.contextmanager
def fixed(threads: int) -> Iterator[None]:
    """Use this many threads while in the block, whatever else runs: for measurements that take turns with others.

    Who has just waited for another process to compute would see its cores as taken.
    """
    global _is_fixed
    before = _is_fixed, torch.get_num_threads()
    begin(threads)
    try:
        yield
    finally:
        _is_fixed = before[0]
        torch.set_num_threads(before[1])
