"""What writing several places at once costs where answers depend on each other, and where they do not (ParallelBench).

    python -m outpace.bench.dependent stories-block --tasks copy,sudoku --examples 24

Share of the tasks solved, one to several tokens per step, the surest places first, greedy; after Kang et al. (2025),
ParallelBench. In a Sudoku every digit depends on the others; in a copied list none does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import torch

from outpace.api.engine import load
from outpace.bench.canvas import Arm, Point, measure
from outpace.bench.canvas_run import task_set
from outpace.errors import OutpaceError

__all__ = ["main", "solved", "table"]


def solved(model: str, tasks: Sequence[str], examples: int, counts: Sequence[int]) -> Iterator[Point]:
    """Yield a point per task and number of tokens per step.

    Raises:
        ConfigError, ModelError: a task or the model does not exist, or the model has no mask.
    """
    arm = Arm("fixed", model, "masked-diffusion", tuple({"per_step": count} for count in counts))
    return measure([arm], [task_set(name, examples) for name in tasks], {model: load(model)}, None)


def table(points: Sequence[Point]) -> str:
    """Return the share solved as a Markdown table: a line per task, a column per number of tokens per step."""
    counts = list(dict.fromkeys(point.settings["per_step"] for point in points))
    lines = [f"| task | {' | '.join(f'{count} per step' for count in counts)} |", "|---" + "|--:" * len(counts) + "|"]
    for name in dict.fromkeys(point.set for point in points):
        cells = [f"{point.quality:.2f}" for point in points if point.set == name]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.bench.dependent", description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a masked model, e.g. stories-block")
    parser.add_argument("--tasks", default="copy,sudoku", help="names of tasks, comma-separated")
    parser.add_argument("--examples", type=int, default=24, help="of each task")
    parser.add_argument("--per-step", type=int, nargs="+", default=[1, 2, 4], help="tokens per step")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    try:
        print(table(list(solved(given.model, given.tasks.split(","), given.examples, given.per_step))))
    except OutpaceError as error:
        print(f"{error} {error.hint}".strip(), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
