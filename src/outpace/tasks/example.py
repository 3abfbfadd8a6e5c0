"""What every task produces: a prompt, one right answer, and how to tell other right answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

Make = Callable[[Random], tuple[str, str]]
Scorer = Callable[["Example", str], bool]
TEST_BYTES = 10


@dataclass(frozen=True, slots=True)
class Example:
    """One instance of a task, as plain text.

    Attributes:
        prompt: What the model is given; `prompt + answer` is a whole document.
        answer: One right answer, with its line end.
        name: Name of the task.
    """

    prompt: str
    answer: str
    name: str

    @property
    def is_test(self) -> bool:
        """Whether the instance is kept for measuring: about 4% of them, by a hash of the prompt."""
        return hashlib.sha256(self.prompt.encode()).digest()[0] < TEST_BYTES


def first_lines(text: str, count: int = 1) -> list[str]:
    """The first `count` lines of an answer, blanks around each removed; what follows them is never scored."""
    return [line.strip() for line in text.lstrip(" ").split("\n")[:count]]
