"""Checkers, as rewards and predicates: of sums, of Countdown as a whole or by equations, and of repetition."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from outpace.tasks.example import Example
from outpace.tasks.planning import OPERATIONS, STEP
from outpace.tasks.registry import score

__all__ = ["countdown", "countdown_steps", "fresh", "sums", "sums_so_far"]

_SUM = re.compile(r"(\d+) ?\+ ?(\d+) ?=\s*$")
_NUMBER = re.compile(r"\s*(\d+)\b")


def sums(texts: Sequence[str], prompts: Sequence[str]) -> list[float]:
    """Return 1 for each text that begins with the sum that its prompt ends with ("... 3 + 4 ="), else 0."""
    found = []
    for text, prompt in zip(texts, prompts, strict=True):
        asked, said = _SUM.search(prompt), _NUMBER.match(text)
        is_right = asked is not None and said is not None and int(asked[1]) + int(asked[2]) == int(said[1])
        found.append(float(is_right))
    return found


def sums_so_far(texts: Sequence[str], prompts: Sequence[str]) -> list[float]:
    """Return 1 for each text that begins with the sum that its prompt ends with, or is a beginning of it, else 0."""
    found = []
    for text, prompt, whole in zip(texts, prompts, sums(texts, prompts), strict=True):
        asked = _SUM.search(prompt)
        right = "" if asked is None else str(int(asked[1]) + int(asked[2]))
        found.append(float(bool(whole) or (bool(right) and right.startswith(text.strip()))))
    return found


def fresh(texts: Sequence[str]) -> list[float]:
    """Return 1 for each text that has a word and no three words in a row twice, else 0: not degenerate."""
    return [float(_is_fresh(text.lower().split())) for text in texts]


def _is_fresh(words: Sequence[str]) -> bool:
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return bool(words) and len(set(runs)) == len(runs)


def countdown(texts: Sequence[str], prompts: Sequence[str]) -> list[float]:
    """Return 1 for each text that solves the Countdown puzzle of its prompt, else 0."""
    puzzles = (Example(prompt, "", "countdown-3") for prompt in prompts)
    return [float(score(puzzle, text)) for puzzle, text in zip(puzzles, texts, strict=True)]


def countdown_steps(texts: Sequence[str], prompts: Sequence[str]) -> list[float]:
    """Return the share of equations so far that are right and use numbers that are left; 2 for a puzzle that is solved.

    An equation that is not finished yet (no comma or line end behind it) is not judged.
    """
    return [2.0 if whole else _share(text, prompt) for text, prompt, whole in _both(texts, prompts)]


def _both(texts: Sequence[str], prompts: Sequence[str]) -> list[tuple[str, str, float]]:
    return list(zip(texts, prompts, countdown(texts, prompts), strict=True))


def _share(text: str, prompt: str) -> float:
    *left, _ = [int(number) for number in re.findall(r"\d+", prompt.split("\n")[0])]
    steps = re.split(r"[,\n]", text.split("\n")[0] + ("\n" if "\n" in text else ""))[:-1]
    right = 0
    for step in steps:
        match = STEP.fullmatch(step.strip())
        if match is None:
            break
        numbers = [int(match[1]), int(match[3])]
        if Counter(numbers) - Counter(left) or OPERATIONS[match[2]](*numbers) != int(match[4]):
            break
        left, right = [*(Counter(left) - Counter(numbers)).elements(), int(match[4])], right + 1
    return right / len(steps) if steps else 1.0
