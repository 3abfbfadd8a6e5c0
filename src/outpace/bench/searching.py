"""What searches find for what they cost: puzzles with checkers, by kind and size of search.

    python -m outpace.bench.searching sums --model stories
    python -m outpace.bench.searching keywords --model stories --num 6
    python -m outpace.bench.searching countdown --model runs/countdown --data DATA --json FILE --plot FILE

Right: texts that the checker passes, or what share of the keywords they hold, in per cent. Searches are named as
NAME:key=value,...; whatever takes a reward gets the task's: the checker of whole texts, or, where texts are judged on
the way, the share of steps that are right. Positions and forwards are the model's, per puzzle: all that a search wrote
and read.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.methods.registry import read_spelled
from outpace.search.base import Search
from outpace.search.checks import countdown, countdown_steps, sums, sums_so_far
from outpace.search.registry import load_search
from outpace.search.rewards import Reward
from outpace.tasks import test_examples
from outpace.tasks.planning import countdown_prompt
from outpace.train.sources import read_jsonl

__all__ = ["TASKS", "Found", "Task", "measure", "run_searching"]

Judge = Callable[[Sequence[str], Sequence[str]], list[float]]
_PUZZLES = "planning/cd3_test.jsonl"


@dataclass(frozen=True, slots=True)
class Task:
    """Something to be solved.

    Attributes:
        prompts: given a number of puzzles and the folder of data, or None.
        check: 1 for a text that is right.
        partly: judges texts on the way; None = as `check`.
        max_tokens: per text.
        stop: strings that end it.
        searches: what is measured where nobody says what.
    """

    prompts: Callable[[int, Path | None], list[str]]
    check: Judge
    max_tokens: int
    searches: tuple[str, ...]
    partly: Judge | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to.

    Attributes:
        search, settings: as it was asked for.
        right: share of puzzles that were solved.
        positions, forwards: of the model, per puzzle.
        seconds: per puzzle.
    """

    search: str
    settings: dict[str, str]
    right: float
    positions: float
    forwards: float
    seconds: float


def _sums(num: int, data: Path | None) -> list[str]:
    del data
    chance = random.Random(0)
    pairs = [(chance.randint(2, 19), chance.randint(2, 19)) for _ in range(num)]
    return [f"Answer: He has {a} + {b} =" for a, b in pairs]


def _countdowns(num: int, data: Path | None) -> list[str]:
    if data is None:
        return [one.prompt for one in test_examples("countdown-3", num)]
    rows = list(read_jsonl(data / _PUZZLES))[:num]
    return [countdown_prompt(str(row["input"])) for row in rows]


_BEGINNINGS = {
    "Once upon a time": ("dog", "happy"),
    "One day, a boy named Tom": ("water", "fish"),
    "The little girl": ("cake", "eat"),
    "Lily and Ben": ("flower", "bird"),
    "A big bear": ("tree", "friends"),
    "There was a cat who": ("house", "sleep"),
}
_WORDS = 16  # of a sentence that is asked for


def _beginnings(num: int, data: Path | None) -> list[str]:
    del data
    return list(_BEGINNINGS)[:num]


def _coverage(texts: Sequence[str], prompts: Sequence[str]) -> list[float]:
    """Return the share of each prompt's keywords that its text holds."""
    said = ({*re.findall("[a-z]+", text.lower())} for text in texts)
    wanted = (_BEGINNINGS[prompt] for prompt in prompts)
    return [sum(word in words for word in keys) / len(keys) for words, keys in zip(said, wanted, strict=True)]


def _nearness(texts: Sequence[str], prompts: Sequence[str]) -> list[float]:
    """Return minus how far each sentence is from the length that is asked for, as a share of it."""
    return [-abs(len(f"{prompt}{text}".split()) - _WORDS) / _WORDS for text, prompt in zip(texts, prompts, strict=True)]


def _exactness(texts: Sequence[str], prompts: Sequence[str]) -> list[float]:
    return [float(value >= -1 / _WORDS) for value in _nearness(texts, prompts)]


_AHEAD = (
    "lookahead-beam:beams=2,weight=0",
    "lookahead-beam:beams=2,width=24,lookahead=0",
    "lookahead-beam:beams=2,width=24,lookahead=6",
)
_STEPPED = (
    *(f"step-beam:beams=1,ways={ways},step=1" for ways in (2, 4, 8)),
    *(f"tree-search:rounds={rounds},ways=4,step=1" for rounds in (2, 4, 8)),
)
_GROWING = tuple(f"best-of:n={n}" for n in (1, 2, 4, 8, 16))
TASKS = {
    "sums": Task(_sums, sums, 5, (*_GROWING, *_STEPPED), sums_so_far),
    "keywords": Task(_beginnings, _coverage, 32, _AHEAD),
    "lengths": Task(_beginnings, _exactness, 40, _AHEAD, _nearness, (".",)),
    "countdown": Task(
        _countdowns,
        countdown,
        40,
        (*_GROWING, "step-beam:beams=2,ways=4", "step-beam:beams=4,ways=4", "tree-search:rounds=4,ways=4"),
        countdown_steps,
        ("\n",),
    ),
}


def _search(spelled: str, task: Task) -> tuple[Search, str, dict[str, str]]:
    """Return a search with the task's reward, its name and what was asked for."""
    name, options = read_spelled(spelled)
    kind = load_search(name)
    given: dict[str, Any] = dict(options)
    if any(isinstance(field.default, Reward) for field in kind.__dataclass_fields__.values()):
        given["reward"] = task.check if name == "best-of" or task.partly is None else task.partly
    if "marks" in kind.__dataclass_fields__:
        given.setdefault("marks", ",\n")
    return kind.from_settings(given), name, options


def measure(lm: LanguageModel, task: Task, prompts: Sequence[str], spelled: str, temperature: float = 1.0) -> Found:
    """Return what a search finds."""
    search, name, options = _search(spelled, task)
    given: dict[str, Any] = {"search": search, "max_tokens": task.max_tokens}
    given["temperature"] = temperature if search.draws or search.reference().draws else 0.0
    found, began = [], time.perf_counter()
    for seed, prompt in enumerate(prompts):
        found.append(lm.generate(prompt, seed=seed, stop=list(task.stop), **given))
    seconds = time.perf_counter() - began
    # A stop string is cut off the text, and the checkers look for nothing behind it.
    right = sum(task.check([one.text for one in found], prompts))
    usages = [one.usage for one in found]
    positions, forwards = sum(one.positions_scored for one in usages), sum(one.target_nfe for one in usages)
    return Found(name, options, *(value / len(prompts) for value in (right, positions, forwards, seconds)))


def _table(found: Sequence[Found]) -> Table:
    columns = ("search", "settings", "right, %", "positions", "forwards", "ms")
    cells = [
        [
            f"`{one.search}`",
            " ".join(f"{key}={value}" for key, value in one.settings.items()),
            f"{100 * one.right:.1f}",
            f"{one.positions:.0f}",
            f"{one.forwards:.0f}",
            f"{1e3 * one.seconds:.0f}",
        ]
        for one in found
    ]
    return Table("", columns, cells, left=2)


def run_searching(
    name: str, model: str, searches: Sequence[str], num: int, data: Path | None, temperature: float
) -> Report:
    """Measure searches on a task and return the report."""
    task, lm = TASKS[name], load(model)
    prompts = task.prompts(num, data)
    found = list[Found]()
    for spelled in searches or task.searches:
        found.append(measure(lm, task, prompts, spelled, temperature))
        print(f"{spelled}: {100 * found[-1].right:.1f} % right", file=sys.stderr, flush=True)
    asked = {"task": name, "model": Path(model).name, "num": len(prompts), "temperature": temperature}
    return new_report("searching", asked, describe(), [asdict(one) for one in found], tables=[_table(found)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("searching", __doc__, threads=1)
    parser.add_argument("task", choices=list(TASKS), help="what is to be solved")
    parser.add_argument("--model", default="stories", help="zoo name or directory")
    parser.add_argument("--searches", nargs="+", default=(), help="NAME:key=value,..., instead of the task's own")
    parser.add_argument("--num", type=int, default=100, help="puzzles")
    parser.add_argument("--data", type=Path, metavar="DIR", help="take the puzzles of its test file")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them here")
    return run_command(parser, _work, arguments)


def _work(given: argparse.Namespace) -> None:
    report = run_searching(given.task, given.model, given.searches, given.num, given.data, given.temperature)
    report.write(given.json, given.plot)
    print(report.markdown())


if __name__ == "__main__":
    sys.exit(main())
