"""Planning puzzles: Countdown arithmetic and 4x4 Sudoku, in the text format in which Dream was evaluated.

Countdown gives numbers and a target as one comma-separated list, the target last; the answer is a chain of equations
that uses every number once. Sudoku gives four rows of digits, 0 for an empty cell, and asks for the filled grid.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from itertools import permutations
from random import Random

from .example import Example, Make, Scorer, first_lines

LOW_TARGET, HIGH_TARGET, LARGEST = 10, 99, 9999
FEWEST_CLUES, MOST_CLUES = 4, 12
STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
OPERATIONS: dict[str, Callable[[int, int], int | None]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b if a > b else None,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b if b and a % b == 0 else None,
}


def countdown_prompt(puzzle: str) -> str:
    """The prompt for `puzzle`: the numbers and the target, comma-separated."""
    return f"Countdown: {puzzle}\nAnswer:"


def _combine(random: Random, numbers: list[int]) -> tuple[list[str], int] | None:
    """Random equations over all `numbers`; None where one of them does not hold."""
    steps, left = list[str](), list(numbers)
    while len(left) > 1:
        a, b = (left.pop(random.randrange(len(left))) for _ in range(2))
        if a < b:
            a, b = b, a
        sign = random.choice("--++*/")
        result = OPERATIONS[sign](a, b)
        if result is None or result > LARGEST:
            return None
        steps.append(f"{a}{sign}{b}={result}")
        left.append(result)
    return steps, left[0]


def _countdown(count: int) -> Make:
    def make(random: Random) -> tuple[str, str]:
        while True:
            numbers = [random.randint(1, 99) for _ in range(count)]
            found = _combine(random, numbers)
            if found and LOW_TARGET <= found[1] <= HIGH_TARGET:
                puzzle = ",".join(map(str, [*numbers, found[1]]))
                return countdown_prompt(puzzle), f" {','.join(found[0])}\n"

    return make


def _reaches_target(example: Example, text: str) -> bool:
    *left, target = map(int, example.prompt.split(": ", 1)[1].split("\n")[0].split(","))
    for step in first_lines(text)[0].split(","):
        match = STEP.fullmatch(step.strip())
        if match is None:
            return False
        a, b, result = int(match[1]), int(match[3]), int(match[4])
        for number in (a, b):
            if number not in left:
                return False
            left.remove(number)
        if OPERATIONS[match[2]](a, b) != result:
            return False
        left.append(result)
    return left == [target]


def sudoku_prompt(puzzle: str) -> str:
    """The prompt for `puzzle`: four lines of four digits, 0 for an empty cell."""
    return f"Sudoku:\n{puzzle}\nAnswer:\n"


def _is_grid(cells: str) -> bool:
    """Whether 16 digits fill rows, columns and boxes with 1 to 4."""
    rows = [cells[start : start + 4] for start in range(0, 16, 4)]
    columns = [cells[start::4] for start in range(4)]
    boxes = [cells[corner : corner + 2] + cells[corner + 4 : corner + 6] for corner in (0, 2, 8, 10)]
    return all(sorted(group) == list("1234") for group in [*rows, *columns, *boxes])


@cache
def grids() -> tuple[str, ...]:
    """All 288 filled grids, 16 digits each."""
    rows = ["".join(row) for row in permutations("1234")]
    tops = [a + b for a in rows for b in rows if not {*a[:2]} & {*b[:2]}]
    return tuple(top + low for top in tops for low in tops if _is_grid(top + low))


@cache
def _holders() -> dict[tuple[int, str], int]:
    """For each cell and digit the set of grids that agree, as bits."""
    held = dict.fromkeys(((cell, digit) for cell in range(16) for digit in "1234"), 0)
    for number, grid in enumerate(grids()):
        for cell, digit in enumerate(grid):
            held[cell, digit] |= 1 << number
    return held


def count_solutions(cells: str) -> int:
    """Number of filled grids that agree with 16 digits, 0 for an empty cell."""
    left = (1 << len(grids())) - 1
    for cell, digit in enumerate(cells):
        if digit != "0":
            left &= _holders()[cell, digit]
    return left.bit_count()


def _sudoku(random: Random) -> tuple[str, str]:
    grid = random.choice(grids())
    wanted, cells = random.randint(FEWEST_CLUES, MOST_CLUES), list(grid)
    # Cells are emptied in a random order as long as one solution is left; not every order gets down to four clues.
    for cell in random.sample(range(16), 16):
        if 16 - cells.count("0") == wanted:
            break
        kept, cells[cell] = cells[cell], "0"
        if count_solutions("".join(cells)) > 1:
            cells[cell] = kept
    return sudoku_prompt(_lines("".join(cells))), _lines(grid) + "\n"


def _lines(cells: str) -> str:
    return "\n".join(cells[start : start + 4] for start in range(0, 16, 4))


def _is_filled(example: Example, text: str) -> bool:
    clues = "".join(example.prompt.split("\n")[1:5])
    cells = "".join(first_lines(text, 4))
    agrees = all(clue in ("0", digit) for clue, digit in zip(clues, cells, strict=False))
    return len(cells) == 16 and agrees and _is_grid(cells)


PLANNING: dict[str, tuple[Make, Scorer]] = {
    "countdown-3": (_countdown(3), _reaches_target),
    "countdown-4": (_countdown(4), _reaches_target),
    "sudoku": (_sudoku, _is_filled),
}
