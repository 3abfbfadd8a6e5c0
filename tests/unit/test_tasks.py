"""The generated tasks: right answers pass, wrong ones fail, and what is measured is never trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from outpace import tasks, zoo
from outpace.errors import ConfigError
from outpace.tasks import TASKS, Example, Task, score, training_examples
from outpace.tasks.lists import LISTS, NAMES, NOUNS
from outpace.tasks.planning import count_solutions, countdown_prompt, grids, sudoku_prompt
from outpace.train import sources


@pytest.mark.parametrize("name", TASKS)
def test_answers_pass_and_seeds_reproduce(name: str) -> None:
    task = Task(name)
    for seed in range(100):
        example = task.sample(seed)
        assert example == task.sample(seed) and example.name == name
        assert example.answer.endswith("\n")
        assert score(example, example.answer) and score(example, example.answer + "Something else.\n")
        assert not score(example, "") and not score(example, "\n" + example.answer[1:])
    assert len({task.sample(seed).prompt for seed in range(100)}) > 95


@pytest.mark.parametrize("name", TASKS)
def test_measured_examples_are_never_trained_on(name: str) -> None:
    measured = [example.prompt for example in tasks.test_examples(name, 40)]
    assert len(set(measured)) == 40
    trained = [example.prompt for example in training_examples(name, 1000)]
    assert len(trained) == 1000 and not set(trained) & set(measured)
    assert tasks.test_examples(name, 20) == tasks.test_examples(name, 40)[:20]


def _list(order: str, items: str, answer: str, name: str) -> Example:
    return Example(f"{order}: {items}\nAnswer:", f" {answer}\n", name)


@pytest.mark.parametrize(
    ("example", "right", "wrong"),
    [
        (_list("Copy", "Tom Ann", "Tom Ann", "copy"), ["Tom Ann"], ["Tom", "Ann Tom", "Tom Ann Joe"]),
        (_list("Reverse", "a b c", "c b a", "reverse"), ["c b a"], ["a b c", "c b", "c b b"]),
        (_list("Sort", "b c a", "a b c", "sort"), [" a b c\n"], ["b a c", "a b"]),
        (
            _list("Shuffle", "a b c", "b a c", "shuffle"),
            ["b a c", "c b a", "b c a", "c a b", "a c b"],
            ["a b c", "a a b", "b a", "b a c c", "b a d"],
        ),
        (
            _list("Replace any with x", "a b c", "x b c", "replace-random"),
            ["x b c", "a x c", "a b x"],
            ["a b c", "x x c", "x b", "x b c c", "b x c", "y b c"],
        ),
        (_list("Replace 2 with x", "a b c", "a x c", "replace-index"), ["a x c"], ["x b c", "a b c"]),
        (_list("Insert x at 1", "a b", "x a b", "insert"), ["x a b"], ["a x b", "a b"]),
        (_list("Remove 2", "a b c", "a c", "remove"), ["a c"], ["a b", "a b c", ""]),
        (
            Example(countdown_prompt("15,44,79,50"), " 44-15=29,79-29=50\n", "countdown-3"),
            ["44-15=29,79-29=50", "79-44=35,35+15=50"],
            [
                "44-15=29,79-29=51",  # wrong arithmetic
                "35+15=50",  # a number from nowhere
                "44-15=29",  # not the target
                "79-44=35,35+15=50,50-44=6,44+6=50",  # a number twice
                "44-15=29;79-29=50",
            ],
        ),
        (Example(countdown_prompt("2,3,50,50"), "", "countdown-3"), [], ["50", "50/1=50"]),
        (Example(countdown_prompt("7,2,60,63"), "", "countdown-3"), [], ["7/2=3,60+3=63"]),
        (
            Example(sudoku_prompt("1000\n0002\n4003\n0000"), "", "sudoku"),
            ["1234\n3412\n4123\n2341\n"],
            ["1234\n3412\n4123\n2341"[:-1], "3412\n1234\n4123\n2341", "1234\n3412\n4123\n2143", "1234\n3412\n4123\n"],
        ),
    ],
)
def test_scores_tell_right_from_wrong(example: Example, right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not score(example, text)] == []
    assert [text for text in wrong if score(example, text)] == []


def test_sudokus_have_one_solution_and_the_counts_are_right() -> None:
    assert len(set(grids())) == 288  # a known number
    assert count_solutions("0" * 16) == 288
    clues = set()
    for seed in range(200):
        example = Task("sudoku").sample(seed)
        cells = "".join(example.prompt.split("\n")[1:5])
        assert count_solutions(cells) == 1
        clues.add(16 - cells.count("0"))
    assert min(clues) <= 5 and max(clues) == 12


def test_every_item_is_one_token_and_the_border_is_clean() -> None:
    tokenizer = Tokenizer.from_file(str(zoo.path("stories") / "tokenizer.json"))
    assert [word for word in NAMES + NOUNS if len(tokenizer.encode(" " + word).ids) != 1] == []
    for name in TASKS:
        example = Task(name).sample(0)
        parts = tokenizer.encode(example.prompt).ids + tokenizer.encode(example.answer).ids
        assert parts == tokenizer.encode(example.prompt + example.answer).ids


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        Task("revers")
    assert "reverse" in caught.value.hint
    with pytest.raises(ConfigError):
        score(replace(Task("copy").sample(0), name="coppy"), "x")
    assert set(LISTS) < set(TASKS)


def test_published_puzzles_are_left_out_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PUZZLES", {"countdown-3": 30, "countdown-4": 30, "sudoku": 30})
    planning = next(source for source in sources.MIXED_SOURCES if source.name == "planning")
    (tmp_path / "planning").mkdir()
    for name in planning.files:
        (tmp_path / name).write_text("")
    every = list(planning.read(tmp_path))
    assert len(every) == 90
    countdown, sudoku = every[3], every[70]
    known = {
        "planning/cd3_test.jsonl": countdown.split(": ")[1].split("\n")[0],
        "planning/sudoku_4x4_7.jsonl": sudoku.removeprefix("Sudoku:\n").split("\nAnswer")[0],
    }
    for name, puzzle in known.items():
        (tmp_path / name).write_text(json.dumps({"input": puzzle, "output": ""}) + "\n")
    assert list(planning.read(tmp_path)) == [text for text in every if text not in (countdown, sudoku)]
