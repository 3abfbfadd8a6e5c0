"""What writing several places at once costs where answers depend on each other, and where they do not (ParallelBench).

    python -m outpace.bench.dependent stories-block --tasks copy,sudoku --examples 24

Share of the tasks solved, one to several tokens per step, the surest places first, greedy; after Kang et al. (2025),
ParallelBench. In a Sudoku every digit depends on the others; in a copied list none does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from outpace.api.engine import load
from outpace.bench.canvas import Sweep, SweepPoint, measure, task_set, values_of
from outpace.bench.command import new_parser, run_command
from outpace.bench.report import Table

__all__ = ["main", "solved", "table"]


def solved(model: str, tasks: Sequence[str], examples: int, counts: Sequence[int]) -> Iterator[SweepPoint]:
    """Yield a point per task and number of tokens per step.

    Raises:
        ConfigError, ModelError: a task or the model does not exist, or the model has no mask.
    """
    sweep = Sweep("fixed", model, "masked-diffusion", values_of("per_step", counts))
    return measure([sweep], [task_set(name, examples) for name in tasks], {model: load(model)}, None)


def table(points: Sequence[SweepPoint]) -> str:
    """Return the share solved as a Markdown table: a line per task, a column per number of tokens per step."""
    counts = dict.fromkeys(point.settings["per_step"] for point in points)
    cells = [
        [name, *(f"{point.quality:.2f}" for point in points if point.set == name)]
        for name in dict.fromkeys(point.set for point in points)
    ]
    return Table("", ["task", *(f"{count} per step" for count in counts)], cells).markdown()


def _work(given: argparse.Namespace) -> None:
    print(table(list(solved(given.model, given.tasks.split(","), given.examples, given.per_step))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("dependent", __doc__, threads=1)
    parser.add_argument("model", help="a masked model, e.g. stories-block")
    parser.add_argument("--tasks", default="copy,sudoku", help="names of tasks, comma-separated")
    parser.add_argument("--examples", type=int, default=24, help="of each task")
    parser.add_argument("--per-step", type=int, nargs="+", default=[1, 2, 4], help="tokens per step")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
