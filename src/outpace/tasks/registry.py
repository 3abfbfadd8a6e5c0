"""All tasks by name, their examples and their scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from random import Random

from outpace.errors import ConfigError, nearest

from .example import Example, Make, Scorer
from .lists import LISTS
from .planning import PLANNING

TASKS: dict[str, tuple[Make, Scorer]] = {**LISTS, **PLANNING}


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    Attributes:
        name: A name in `TASKS`.

    Raises:
        ConfigError: When there is no such task.
    """

    name: str

    def __post_init__(self) -> None:
        """Refuse an unknown name."""
        if self.name not in TASKS:
            raise ConfigError(f"there is no task {self.name!r}", nearest(self.name, TASKS, "task"))

    def sample(self, seed: int) -> Example:
        """The instance of `seed`; the same seed always gives the same one."""
        prompt, answer = TASKS[self.name][0](Random(f"{self.name}:{seed}"))
        return Example(prompt, answer, self.name)


def score(example: Example, text: str) -> bool:
    """Whether `text`, what a model wrote after the prompt, answers it.

    Only the first line counts (for Sudoku the first four). Where a task has many right answers, each is accepted.

    Raises:
        ConfigError: When the example is of no known task.
    """
    return TASKS[Task(example.name).name][1](example, text)


def test_examples(name: str, num: int) -> list[Example]:
    """The first `num` different instances that are kept for measuring: no recipe trains on them.

    Raises:
        ConfigError: When there is no such task.
    """
    found = dict[str, Example]()
    task = Task(name)
    for seed in count():
        if len(found) == num:
            break
        example = task.sample(seed)
        if example.is_test:
            found.setdefault(example.prompt, example)
    return list(found.values())


# pytest would collect the function above wherever a test imports it.
test_examples.__test__ = False  # type: ignore[attr-defined]


def training_examples(name: str, num: int) -> Iterator[Example]:
    """Yield `num` instances of a task that are not kept for measuring.

    Raises:
        ConfigError: When there is no such task.
    """
    task, left = Task(name), num
    for seed in count():
        if left <= 0:
            return
        example = task.sample(seed)
        if not example.is_test:
            left -= 1
            yield example
