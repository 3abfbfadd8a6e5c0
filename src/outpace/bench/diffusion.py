"""When diffusion pays: any points (model, method, options) on one set of axes, the causal model beside them.

    python -m outpace.bench.diffusion stories-block:fast-dllm:threshold=0.7 stories-mask:mdlm --sets stories,copy

The causal model writes plainly and under `auto`. A point is `MODEL:METHOD` or `MODEL:METHOD:key=value,key=value`;
without any, a few of each masked model that ships. Every point writes the same texts: forwards, positions and seconds;
likelihood and entropy of open-ended text under the causal model, or the share of structured answers that are right.
`--json` keeps the figures, `--plot` draws them, and `--add FILE` puts points measured earlier beside the new ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from outpace.api.engine import load
from outpace.bench.canvas import Set, Sweep, SweepPoint, measure, spell, stories, task_set
from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.plots import draw_paying
from outpace.bench.report import Table, new_report, read_report
from outpace.errors import ConfigError
from outpace.methods.registry import read_spelled

__all__ = ["POINTS", "main", "read_point", "tables"]

POINTS = (
    *("stories-block:masked-diffusion", "stories-block:fast-dllm:threshold=0.7", "stories-block:eb-sampler"),
    *("stories-block:freedave", "stories-block:masked-diffusion:per_step=2", "stories-mask:masked-diffusion"),
    *("stories-mask:fast-dllm:threshold=0.7", "stories-mask:freedave", "stories-mask:mdlm"),
)
_HEADS = (
    "model, method",
    "options",
    "quality",
    "nats/tok",
    "entropy",
    "forwards",
    "positions",
    "tok/fwd",
    "s",
    "ms/tok",
)


def read_point(text: str) -> Sweep:
    """Return the point that words describe.

    Raises:
        ConfigError: they name no model and method, or an option has no value.
    """
    model, _, rest = text.partition(":")
    method, options = read_spelled(rest)
    if not model or not method:
        raise ConfigError(f"{text!r} is no point.", "Write MODEL:METHOD or MODEL:METHOD:key=value,key=value.")
    settings = {key: _value(value) for key, value in options.items()}
    return Sweep(f"{model} {method}", model, method, (settings,))


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def tables(points: Iterable[SweepPoint]) -> list[Table]:
    """Return the figures as one table per set, the most tokens per second first.

    Of open-ended text quality is exp(-nats per token) under the causal model, of tasks the share solved.
    """
    groups: dict[str, list[SweepPoint]] = {}
    for point in points:
        groups.setdefault(point.set, []).append(point)
    return [
        Table(name, _HEADS, [_cells(p) for p in sorted(group, key=lambda p: p.seconds / max(p.tokens, 1))])
        for name, group in groups.items()
    ]


def _cells(point: SweepPoint) -> list[str]:
    nats = f"{point.nll:.3f}" if point.nll else "-"
    return [
        point.arm,
        spell(point.settings),
        f"{point.quality:.3f}",
        nats,
        f"{point.entropy:.2f}",
        str(point.forwards),
        str(point.positions),
        f"{point.tokens_per_forward:.2f}",
        f"{point.seconds:.2f}",
        f"{1e3 * point.seconds / max(point.tokens, 1):.2f}",
    ]


def _sets(given: argparse.Namespace) -> list[Set]:
    return [
        stories(given.num, given.max_tokens, given.temperature) if name == "stories" else task_set(name, given.num)
        for name in given.sets.split(",")
    ]


def _work(given: argparse.Namespace) -> None:
    texts = list(given.points or POINTS)
    texts += [f"{given.causal}:autoregressive", f"{given.causal}:auto"]
    sweeps, sets = [read_point(text) for text in texts], _sets(given)
    models = {name: load(name, generation_config="none") for name in {sweep.model for sweep in sweeps}}
    judge = models[given.causal]
    found = list(measure(sweeps, sets, models, judge, lambda text: print(text, file=sys.stderr), given.repeats))
    if given.add:
        found = [SweepPoint.from_dict(row) for row in read_report(given.add).rows] + found
    shown = tables(found)
    print("\n\n".join(part.markdown() for part in shown))
    if given.json:
        rows = [point.to_dict() for point in found]
        told = {**vars(given), "add": bool(given.add)}
        new_report("diffusion", told, describe(), rows, tables=shown).write(given.json)
    if given.plot:
        draw_paying(found, given.plot)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = new_parser("diffusion", __doc__, threads=1)
    parser.add_argument("points", nargs="*", help="MODEL:METHOD:key=value,...; none = a few of the models that ship")
    parser.add_argument("--causal", default="stories", help="the causal model: judge, and the arms plain and auto")
    parser.add_argument("--sets", default="stories", help='"stories" and names of tasks, comma-separated')
    parser.add_argument("--num", type=int, default=6, help="texts per set")
    parser.add_argument("--max-tokens", type=int, default=64, help="of a story")
    parser.add_argument("--temperature", type=float, default=0.0, help="of stories")
    parser.add_argument("--repeats", type=int, default=1, help="seconds are the least of so many runs")
    parser.add_argument("--add", type=Path, help="a report of this module whose points stand beside the new ones")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--plot", type=Path, help="draw quality over speed to this file")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
