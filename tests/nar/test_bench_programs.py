"""The bench of dynamic programs measures what it says it does, on a size that takes no time."""

from __future__ import annotations

import argparse

import pytest

from outpace.bench.programs import PEAKS, main, shares

TINY = {"rows": 2, "tokens": 4, "vocab": 40, "width": 16, "factor": 3, "reach": 6, "block": 5, "rounds": 1}


def test_each_program_has_a_share_of_its_step() -> None:
    table = shares(argparse.Namespace(**TINY))
    assert [cells[:2] for cells in table.cells] == [
        ["ctc", "likelihood"],
        ["ctc", "glancing"],
        ["dag", "likelihood"],
        ["dag", "glancing"],
    ]
    for _, _, step, program, share in table.cells:
        assert float(step) >= 0
        assert float(program) >= 0
        assert share.endswith("%")


@pytest.mark.parametrize("name", PEAKS)
def test_the_peak_is_told_in_bytes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"--{key}={value}" for key, value in TINY.items() if key != "rounds"]
    assert main([*given, f"--peak={name}"]) == 0
    assert int(capsys.readouterr().out) >= 0
