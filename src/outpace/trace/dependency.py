"""The dependency graph of Jacobi decoding: which iteration fixed which position, and what it waited for.

    trace = DependencyTrace()
    model.generate(prompt, method="jacobi", options={"mode": "block", "window": 8}, watch=trace)
    trace.to_dict()

Source: Santilli et al. (2023), arXiv 2305.10427, the decoding dependency graph. An answer depends on the guesses before
it; where it became the final token after having been another one, the guesses that had changed since then are what it
had waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outpace.errors import ConfigError

if TYPE_CHECKING:
    from outpace.run.row import Row
    from outpace.types import Outcome

__all__ = ["DependencyTrace", "draw_dependencies"]


@dataclass(slots=True)
class _Iteration:
    """One iteration of one row: tokens written before it, guesses, answers (the first belongs to `first`), new ones."""

    first: int
    guess: list[int]
    answer: list[int]
    fixed: int


@dataclass(slots=True)
class _Record:
    row: Row
    iterations: list[_Iteration] = field(default_factory=list)


class DependencyTrace:
    """Watches a run of the method `jacobi`, in any of its modes.

    Args:
        decode: one token to text, for people; None = ids only.
    """

    def __init__(self, decode: Callable[[list[int]], str] | None = None) -> None:
        self.decode = decode
        self._records: dict[int, _Record] = {}

    def __call__(self, rows: Sequence[Row], outcome: Outcome) -> None:
        """Note one step.

        Raises:
            ConfigError: the step is not one of Jacobi decoding.
        """
        proposal, reports = outcome.proposal, outcome.reports
        if proposal is None or not all(report.answers for report in reports):
            raise ConfigError("A dependency trace was asked for, but this is no Jacobi decoding.", "Use method jacobi.")
        guesses = proposal.tokens.tolist()
        for index, (row, emitted) in enumerate(zip(rows, outcome.emitted, strict=True)):
            length = proposal.length[index]
            first = len(row.written) - len(emitted)
            record = self._records.setdefault(id(row), _Record(row))
            record.iterations.append(_Iteration(first, guesses[index][:length], reports[index].answers, len(emitted)))

    def to_dict(self) -> dict[str, Any]:
        """Return the graph of every row as JSON-ready values, rows in the order in which they were first seen.

        Of each row: its `tokens` (and `text`); `fixed_at` and `right_at`, the iteration in which each token was written
        and the one from which on its answer was right; `edges` [i, j]: token j waited for token i; and `iterations`,
        each with the number of tokens written before it, the guesses, the answers and how many of these were written.
        """
        return {"rows": [self._graph(record) for record in self._records.values()]}

    def _graph(self, record: _Record) -> dict[str, Any]:
        tokens, steps = record.row.written, record.iterations
        fixed_at = [number for number, step in enumerate(steps) for _ in range(step.fixed)]
        right_at = [_right_since(steps, place, tokens[place], fixed_at[place]) for place in range(len(tokens))]
        edges = [
            [cause, place]
            for place, number in enumerate(right_at)
            if number and place - steps[number - 1].first in range(len(steps[number - 1].answer))
            for cause in _changes(steps[number - 1], steps[number], tokens, place)
        ]
        graph: dict[str, Any] = {"tokens": list(tokens), "fixed_at": fixed_at, "right_at": right_at, "edges": edges}
        if self.decode is not None:
            graph["text"] = [self.decode([token]) for token in tokens]
        graph["iterations"] = [
            {"first": step.first, "guess": step.guess, "answer": step.answer, "fixed": step.fixed} for step in steps
        ]
        return graph


def _right_since(steps: Sequence[_Iteration], place: int, token: int, last: int) -> int:
    """Return the earliest iteration from which on every answer at `place` was `token`."""
    since = last
    for number in range(last, -1, -1):
        at = place - steps[number].first
        if not 0 <= at < len(steps[number].answer) or steps[number].answer[at] != token:
            break
        since = number
    return since


def _changes(old: _Iteration, new: _Iteration, tokens: Sequence[int], place: int) -> list[int]:
    """Return the positions before `place` at which two consecutive iterations read different tokens."""
    return [at for at in range(old.first, place) if _read(old, tokens, at) != _read(new, tokens, at)]


def _read(step: _Iteration, tokens: Sequence[int], at: int) -> int:
    return tokens[at] if at < step.first else step.guess[at - step.first]


def draw_dependencies(graph: dict[str, Any], path: Path) -> None:
    """Draw one row of `DependencyTrace.to_dict` as iterations by positions.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("Drawing needs matplotlib, which is not installed.", 'pip install "outpace[plot]"') from None
    tokens, steps = graph["tokens"], graph["iterations"]
    table = [[_colour(step, at, token) for at, token in enumerate(tokens)] for step in steps]
    figure = Figure(figsize=(1.5 + 0.45 * len(tokens), 1.2 + 0.3 * len(steps)), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow(table, cmap=ListedColormap(["#ffffff", "#e8b4a8", "#a9cdb4", "#1f4e79"]), vmin=0, vmax=3, aspect="auto")
    axes.set_xticks(range(len(tokens)), graph.get("text", [str(token) for token in tokens]), rotation=45, ha="right")
    axes.set_yticks(range(len(steps)))
    axes.set(ylabel="iteration", title="wrong, right, and written at each iteration")
    figure.savefig(path)


def _colour(step: dict[str, Any], at: int, token: int) -> int:
    """Return 0 outside the window, 1 for a wrong answer, 2 for a right one, 3 for one written in this iteration."""
    place = at - step["first"]
    if not 0 <= place < len(step["answer"]):
        return 0
    return 3 if place < step["fixed"] else 1 + (step["answer"][place] == token)
