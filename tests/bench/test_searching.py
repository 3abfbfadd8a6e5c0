"""Searches on puzzles: checkers by cases worked by hand, figures counted from results, JSON, plot and command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outpace import load
from outpace.bench.report import read_report
from outpace.bench.searching import TASKS, main, measure
from outpace.search.checks import countdown, countdown_steps, sums, sums_so_far

PUZZLE = "Countdown: 5,30,4,29\nAnswer:"


def test_a_sum_is_right_or_not() -> None:
    prompts = ["He has 3 + 4 =", "3+14=", "3 + 4", "3 + 4 ="]
    assert sums([" 7 apples", "17", " 7", " 70"], prompts) == [1.0, 1.0, 0.0, 0.0]
    assert sums_so_far(["", "1", " 7", " 70"], prompts) == [1.0, 1.0, 0.0, 0.0]
    assert sums_so_far([" 7 apples", " 17 a", "", " 7a"], prompts) == [1.0, 1.0, 0.0, 0.0]


def test_countdown_is_judged_as_a_whole_and_step_by_step() -> None:
    texts = [
        " 30+4=34,34-5=29\n",  # solved
        " 30+4=34,34-5",  # so far right; the second is not finished
        " 30+4=34,34-5=28\n",  # one of two is right
        " 30+3=33,",  # no such number
        " 30+30=60,",  # it is there once
        " 30-4",  # nothing to judge yet
        " what\n",
    ]
    assert countdown(texts, [PUZZLE] * len(texts)) == [1.0, 0, 0, 0, 0, 0, 0]
    assert countdown_steps(texts, [PUZZLE] * len(texts)) == [2.0, 1.0, 0.5, 0.0, 0.0, 1.0, 0.0]


def test_figures_are_those_of_the_results() -> None:
    lm, task = load("stories"), TASKS["sums"]
    prompts = task.prompts(4, None)
    found = measure(lm, task, prompts, "best-of:n=3")
    options = {"n": 3, "reward": sums}
    given = {"search": "best-of", "options": options, "temperature": 1.0, "max_tokens": task.max_tokens}
    results = [lm.generate(prompt, seed=seed, **given) for seed, prompt in enumerate(prompts)]
    assert found.right == sum(sums([one.text for one in results], prompts)) / 4
    assert found.positions == sum(one.usage.positions_scored for one in results) / 4
    assert found.settings == {"n": "3"} and found.search == "best-of"


def test_the_command_writes_figures_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, plot = tmp_path / "found.json", tmp_path / "found.png"
    searches = ("best-of:n=1", "step-beam:beams=1,ways=2")
    assert main(["sums", "--num", "2", "--searches", *searches, "--json", str(file)]) == 0
    assert "| `step-beam` | beams=1 ways=2 |" in capsys.readouterr().out
    report = read_report(file)
    report.draw(plot)
    assert plot.stat().st_size > 1000 and json.loads(file.read_text())["kind"] == "searching"
    assert main(["sums", "--num", "1", "--searches", "worst-of"]) != 0
