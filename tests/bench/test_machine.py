from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from outpace.bench import machine
from outpace.errors import OutpaceError

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("4711"); file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def test_two_never_run_at_once(own_lock: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(own_lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None and holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutpaceError, match="4711"), machine.lock(0.05):
            pass
    finally:
        holder.communicate("")
    with machine.lock(0.05):  # a dead holder holds nothing
        assert own_lock.read_text().isdigit()
    assert own_lock.read_text() == ""


def test_what_is_told_about_the_machine() -> None:
    facts = machine.describe()
    assert {"cpu", "cpu_flags", "threads", "load_average", "torch", "commit", "time"} <= set(facts)
    assert facts["threads"] >= 1
    assert len(facts["load_average"]) == 3
    assert facts["is_busy"] == (facts["load_average"][0] > 0.5)
    assert facts["gpu_note"]


def test_peak_memory_sees_an_allocation() -> None:
    code = (
        "from outpace.bench.machine import peak_memory\n"
        "before = peak_memory()\nheld = bytearray(b'1') * (64 << 20)\ndel held\nprint(peak_memory() - before)"
    )
    grown = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 60 << 20 <= grown <= 80 << 20
