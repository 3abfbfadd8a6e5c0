"""Sides take turns, and every command of the benchmarks ends in a sentence on a mistake."""

from __future__ import annotations

import importlib

import pytest

from outpace.bench.rounds import in_turns

MISTAKES = {
    "auto_rows": ["--model", "no-such-model"],
    "busy": ["--model", "no-such-model"],
    "canvas_caches": ["no-such-model"],
    "canvas_run": ["no-such-file.json", "--out", "."],
    "canvas_steps": ["no-such-model"],
    "dependent": ["stories-block", "--tasks", "no-such-task"],
    "samplers": ["no-such-model"],
    "vocab_trim": ["no-such-model"],
}


def test_sides_rotate_after_their_warm_up() -> None:
    log: list[str] = []
    sides = {name: (lambda name=name: log.append(name) or len(log)) for name in "abc"}
    found = in_turns(sides, 3, warm_ups=1)
    assert "".join(log) == "abc" + "abc" + "bca" + "cab"
    assert found == {"a": [4, 9, 11], "b": [5, 7, 12], "c": [6, 8, 10]}


def test_a_round_that_is_not_begun_ends_the_measurement() -> None:
    found = in_turns({"a": lambda: 1, "b": lambda: 2}, 5, warm_ups=0, begin=lambda number: number < 2)
    assert found == {"a": [1, 1], "b": [2, 2]}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_a_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"outpace.bench.{name}")
    assert module.main(MISTAKES[name]) in (1, 2)
    told = capsys.readouterr().err
    assert told.startswith("error: ") and "Traceback" not in told and len(told.splitlines()) <= 2


@pytest.mark.parametrize("name", [*MISTAKES, "drafting", "overhead"])
def test_a_wrong_option_is_the_parsers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"outpace.bench.{name}")
    with pytest.raises(SystemExit, match="2"):
        module.main(["--no-such-option"])
    assert f"python -m outpace.bench.{name}" in capsys.readouterr().err
