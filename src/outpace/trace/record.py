"""Writing and reading traces: JSON lines, one per step, so that a run that breaks off leaves a readable file.

The first line says what was run, every further line is a step, the last one sums up:
    {"kind": "outpace-trace", "version": 1, "model": ..., "method": ..., "settings": ..., "prompts": [...]}
    {"step": 0, "seconds": {...}, "rows": [{"row": 0, "origin": ..., "note": ..., "tokens": [...], "text": [...],
        "sources": [...], "path": [...], "draft": {"tokens": [...], "text": [...], "parent": [...]}}]}
    {"end": true, "results": [{"finish_reason": ..., "usage": {...}, "timing": {...}}], "dependencies": [...]}

The last line of Jacobi decoding holds the dependency graph of each row (`DependencyTrace.to_dict`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from outpace.errors import ConfigError
from outpace.trace.dependency import DependencyTrace
from outpace.trace.page import summarise

if TYPE_CHECKING:
    from outpace.api.result import Result
    from outpace.run.row import Row
    from outpace.types import Outcome, Proposal

__all__ = ["Recorder", "read_trace"]

_KIND, _VERSION = "outpace-trace", 1


class Recorder:
    """Writes a trace; give it to `generate` as `watch`, and close it with the results.

    Args:
        file: where to write; an existing file is replaced when there is a first step to write.
        decode: ids to text, for people; None = ids only.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, file: str | Path, decode: Callable[[list[int]], str] | None = None) -> None:
        self.decode = decode
        self.num_steps = 0
        self._numbers: dict[int, int] = {}
        self._pieces: dict[int, str] = {}
        self._head: dict[str, Any] = {}
        self._is_begun = False
        self._graph: DependencyTrace | None = DependencyTrace(decode)
        try:
            self._out: IO[str] = open(file, "w", encoding="utf-8", opener=_keeping)
        except OSError as error:
            raise ConfigError(
                f"The trace {str(file)!r} cannot be written: {error.strerror}.", "Name another file."
            ) from error

    def begin(self, model: str, method: str, settings: dict[str, Any], prompts: Sequence[str]) -> None:
        """Say what the first line is; it is written with the first step."""
        head = {"kind": _KIND, "version": _VERSION, "model": model, "method": method}
        self._head = {**head, "settings": settings, "prompts": list(prompts)}

    def __call__(self, rows: Sequence[Row], outcome: Outcome) -> None:
        """Write one step."""
        if not all(report.answers for report in outcome.reports):
            self._graph = None
        if self._graph is not None and outcome.reports:
            self._graph(rows, outcome)
        told = [self._row(index, row, outcome) for index, row in enumerate(rows)]
        self._write({"step": self.num_steps, "seconds": outcome.seconds, "rows": told})
        self.num_steps += 1

    def close(self, results: Sequence[Result] = ()) -> None:
        """Write the last line and close the file."""
        told = [
            {
                "finish_reason": r.finish_reason,
                "usage": dataclasses.asdict(r.usage),
                "timing": r.timing,
                "notes": r.notes,
            }
            for r in results
        ]
        graphs = [] if self._graph is None else self._graph.to_dict()["rows"]
        self._write({"end": True, "results": told, **({"dependencies": graphs} if graphs else {})})
        self._out.close()

    def _row(self, index: int, row: Row, outcome: Outcome) -> dict[str, Any]:
        tokens, proposal = outcome.emitted[index], outcome.proposal
        told: dict[str, Any] = {
            "row": self._numbers.setdefault(id(row), len(self._numbers)),
            "tokens": tokens,
            "text": self._texts(tokens),
            "sources": row.sources[len(row.sources) - len(tokens) :] if tokens else [],
            "path": outcome.path[index],
        }
        if proposal is not None:
            origin = proposal.origin if isinstance(proposal.origin, str) else proposal.origin[index]
            told |= {"origin": origin, "note": proposal.note, "draft": self._draft(proposal, index)}
        return told

    def _draft(self, proposal: Proposal, index: int) -> dict[str, Any]:
        size = proposal.length[index]
        tokens = proposal.tokens[index, :size].tolist()
        parent = range(-1, size - 1) if proposal.parent is None else proposal.parent[index, :size].tolist()
        return {"tokens": tokens, "text": self._texts(tokens), "parent": list(parent)}

    def _texts(self, tokens: Sequence[int]) -> list[str]:
        if self.decode is None:
            return [str(token) for token in tokens]
        for token in tokens:
            if token not in self._pieces:
                self._pieces[token] = self.decode([token])
        return [self._pieces[token] for token in tokens]

    def _write(self, line: dict[str, Any]) -> None:
        if not self._is_begun:
            with contextlib.suppress(OSError):  # a pipe, a terminal or a device holds nothing old
                self._out.truncate(0)
            self._out.write(json.dumps(self._head) + "\n")
            self._is_begun = True
        self._out.write(json.dumps(line) + "\n")


def _keeping(file: str, flags: int) -> int:
    """Open a file without emptying it, so that a run that is refused leaves an earlier trace as it was."""
    return os.open(file, flags & ~os.O_TRUNC, 0o666)


def read_trace(file: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Return (what was run, steps, results) of a trace; of one that broke off, what there is.

    Raises:
        ConfigError: the file cannot be read or is no trace.
    """
    hint = "Write one with outpace generate --trace FILE."
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"The trace {str(file)!r} cannot be read.", hint) from None
    parsed = []
    for line in filter(None, lines):
        try:
            parsed.append(json.loads(line))
        except (ValueError, RecursionError):
            break  # the run broke off inside a line
    if not parsed or not isinstance(parsed[0], dict) or parsed[0].get("kind") != _KIND:
        raise ConfigError(f"The file {str(file)!r} is no trace.", hint)
    if parsed[0].get("version") != _VERSION:
        raise ConfigError(f"The trace has version {parsed[0].get('version')}, not {_VERSION}.", hint)
    try:
        steps = [line for line in parsed[1:] if "step" in line]
        results: list[dict[str, Any]] = next((line["results"] for line in parsed if line.get("end")), [])
        summarise(steps)  # fails where a line lacks what a step has
    except (AttributeError, IndexError, KeyError, TypeError):
        raise ConfigError(f"The trace {str(file)!r} is damaged.", hint) from None
    return parsed[0], steps, results
