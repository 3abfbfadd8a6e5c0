"""What all modules of benchmarks that are commands share: a parser, values in lists, and one sentence on a mistake."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence

from outpace.failures import guarded

__all__ = ["new_parser", "numbers", "run_command", "words"]


def new_parser(name: str, doc: str | None, *, threads: int = 0) -> argparse.ArgumentParser:
    """Return the parser of a module, with its option for threads.

    Args:
        name: of the module in `outpace.bench`.
        doc: its docstring, whose first line is shown.
        threads: of torch where none are asked for; 0 = as they are.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.{name}", description=(doc or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=threads, help="CPU threads; 0 = as they are")
    return parser


def run_command(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse a command line and do its work; return the exit status. What goes wrong is told in a sentence.

    Args:
        parser: from `new_parser`.
        work: what the command does with its options.
        arguments: of the command line; None = this process's.
    """
    given = parser.parse_args(arguments)

    def run(_: list[str]) -> int:
        import torch

        if given.threads:
            torch.set_num_threads(given.threads)
        work(given)
        return 0

    return guarded(run, [])


def numbers(text: str) -> list[int]:
    """Read whole numbers with commas between them."""
    try:
        return [int(item) for item in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list like 1,2,4") from None


def words(kind: str, known: Collection[str]) -> Callable[[str], list[str]]:
    """Return what reads names with commas between them, each of which has to be known."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"there is no {kind} {name!r}: {', '.join(known)}")
        return names

    return read
