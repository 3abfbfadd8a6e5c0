"""How many threads a step takes, from accounts written here; and that the text does not depend on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

import outpace
from outpace import kernels
from outpace.errors import ConfigError
from outpace.kernels import build as building
from outpace.run import threads
from outpace.run.loop import Run
from outpace.run.threads import INTERVAL_S, STALE_S, Account, Steering

CORES = 4


class Machine:
    """Four cores whose use is set by hand; it is its own clock."""

    def __init__(self) -> None:
        self.account, self.is_readable = Account(0.0, CORES, 0.0, 0.0), True

    def run(self, others: float, own: float = 0.0, seconds: float = INTERVAL_S) -> None:
        """Let time pass in which others use so many cores at equal priority, and this process so many."""
        now = self.account
        free = CORES - others - own
        self.account = Account(now.at_s + seconds, CORES, now.free + free * seconds, now.own + own * seconds)

    def read(self) -> Account | None:
        return self.account if self.is_readable else None

    def now(self) -> float:
        return self.account.at_s


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def steering(machine: Machine) -> Steering:
    return Steering(machine.read, now=machine.now)


def test_what_others_use_is_left_to_them_and_taken_back(machine: Machine, steering: Steering) -> None:
    assert steering.count(4) == 4
    for others, own, count in ((0, 4, 4), (1, 3, 3), (3, 1, 1), (4, 0, 1), (1.4, 1, 3), (0.2, 1, 4), (0, 1, 4)):
        machine.run(others, own)
        assert [steering.count(most) for most in (4, 2, 1)] == [count, min(count, 2), 1]


def test_one_busy_process_takes_a_core_however_the_scheduler_deals(machine: Machine) -> None:
    """Two threads and one neighbour share two of the cores as 4/3 and 2/3; one thread leaves it a core."""
    for others in (2 / 3, 1.0):
        steering = Steering(machine.read, now=machine.now)
        machine.run(2 + others, 2 - others)  # two cores are used by somebody else throughout
        assert steering.count(2) == 1


def test_accounts_are_read_once_per_interval(machine: Machine, steering: Steering) -> None:
    machine.run(3, 1, INTERVAL_S / 2)
    assert steering.count(4) == 4
    machine.run(3, 1, INTERVAL_S / 2)
    assert steering.count(4) == 1


def test_an_old_account_counts_only_where_there_is_no_other(machine: Machine, steering: Steering) -> None:
    machine.run(3, 1, 2 * STALE_S)  # loading
    assert steering.count(4) == 1
    machine.run(0, 0, 2 * STALE_S)  # nothing was asked for
    assert steering.count(4) == 1
    machine.run(0, 1)
    assert steering.count(4) == 4


def test_a_system_without_accounts_is_not_steered(machine: Machine) -> None:
    machine.is_readable = False
    steering = Steering(machine.read, now=machine.now)
    machine.run(4)
    assert steering.count(4) == 4


def test_accounts_that_vanish_end_the_steering(machine: Machine, steering: Steering) -> None:
    machine.run(3, 1)
    assert steering.count(4) == 1
    machine.is_readable = False
    machine.run(3, 1)
    assert steering.count(4) == 4


def test_a_quota_limits_an_idle_machine(machine: Machine) -> None:
    steering = Steering(machine.read, quota=2, now=machine.now)
    machine.run(0, 1)
    assert steering.count(4) == 2


STAT = """cpu  999 999 999 999 999 0 0 0 0 0
cpu0 100 200 50 1000 30 0 5 7 0 0
cpu1 1 2 3 4 5 0 0 0 0 0
cpu10 10 20 30 40 50 0 0 0 0 0
intr 12345 0 0
"""


@pytest.mark.parametrize(
    ("cores", "makes_way", "ticks"),
    [({0}, True, 1230), ({0}, False, 1030), ({1}, True, 11), ({0, 10}, False, 1120), ({3}, True, 0)],
)
def test_lower_priorities_count_as_free_to_whom_they_make_way(cores: set[int], makes_way: bool, ticks: int) -> None:
    free = threads._free_seconds(STAT.splitlines(), cores, makes_way)
    assert free * threads.os.sysconf("SC_CLK_TCK") == pytest.approx(ticks)


@pytest.mark.parametrize(("text", "quota"), [("200000 100000\n", 2), ("max 100000\n", 0), ("10000 100000\n", 1)])
def test_the_quota_of_a_container(
    text: str, quota: int, tmp_path: threads.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr(threads, "_GROUP", tmp_path)
    assert threads._read_quota() == quota


def test_the_quota_of_the_first_version(tmp_path: threads.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr(threads, "_GROUP", tmp_path)
    assert threads._read_quota() == 0
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("150000\n")
    assert threads._read_quota() == 2


class Given:
    """Steers by a list instead of a machine."""

    def __init__(self, counts: list[int]) -> None:
        self.counts, self.taken = itertools.cycle(counts), []

    def count(self, most: int) -> int:
        if most == 1:
            return 1
        self.taken.append(min(most, next(self.counts)))
        return self.taken[-1]


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def stories() -> outpace.LanguageModel:
    if building.build().library is None:
        pytest.skip(kernels.note())
    return outpace.load("stories")


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("method", ["autoregressive", "opt-tree"])
def test_bits_are_those_of_one_thread_while_the_count_changes_every_step(
    method: str, stories: outpace.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for counts in ([1], [3, 1, 2], [3]):
        given = Given(counts)
        monkeypatch.setattr(threads, "_steering", lambda given=given: given)
        law = {"temperature": 0.7, "seed": 3, "record": ["log_probs"]}
        result = stories.generate("Once upon a time", method=method, max_tokens=32, **law)
        results.append((result.tokens, result.log_probs))
        assert set(given.taken) == set(counts)
        assert torch.get_num_threads() == 3
    assert results[0] == results[1] == results[2]


@pytest.mark.usefixtures("three_threads")
def test_a_step_that_fails_gives_the_threads_back(
    stories: outpace.LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def fail(run: Run, budget: int | None) -> None:
        seen.append(torch.get_num_threads())
        raise RuntimeError("broken")

    monkeypatch.setattr(threads, "_steering", lambda: Given([1]))
    monkeypatch.setattr(Run, "_step", fail)
    with pytest.raises(RuntimeError, match="broken"):
        stories.generate("Once", max_tokens=2)
    assert (seen, torch.get_num_threads()) == ([1], 3)


@pytest.mark.usefixtures("three_threads")
def test_what_rounds_otherwise_with_fewer_threads_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_steering", lambda: Given([1]))
    for is_steered, count in ((False, 3), (True, 1)):
        if is_steered and building.build().library is None:
            continue
        with threads.shared(is_steered):
            assert torch.get_num_threads() == count


@pytest.mark.usefixtures("three_threads")
def test_a_number_that_was_asked_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_is_fixed", False)
    monkeypatch.setattr(threads, "_steering", lambda: Given([1]))
    threads.begin(2)
    with threads.shared(True):
        assert torch.get_num_threads() == 2
    with pytest.raises(ConfigError, match="threads is 0"):
        threads.begin(0)
