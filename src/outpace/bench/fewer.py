"""Fewer forwards on a masked model: distilled and filtered models beside one token per step and the threshold sampler.

    python -m outpace.bench.fewer stories-mask --student runs/stories-mask-rounds --filter filter.json --json fewer.json

One row per setting: tokens per forward, the nats per token of what was written under a causal judge, and the entropy of
its tokens. Texts are drawn at one temperature, one seed per prompt. "Equal" in the last column means: at most 0.05 nats
more than one token per step of the first model, and at most 0.1 nats less entropy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from outpace.api.engine import load
from outpace.bench.canvas import Sweep, SweepPoint, measure, spell, stories, values_of
from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Table, new_report

__all__ = ["main", "sweeps", "table"]

_NATS, _ENTROPY = 0.05, 0.1
_TOLD = ("model", "judge", "num", "max_tokens", "temperature", "block")
_THRESHOLDS = (0.7, 0.5, 0.35)


def sweeps(model: str, students: Sequence[str], filters: str, block: int) -> list[Sweep]:
    """Return what is measured, one token per step of the model first.

    Args:
        model: the masked model, as sweeps name it.
        students: distilled ones.
        filters: a file for `learn2pd`; "" = none.
        block: places per block.
    """
    found = []
    for name in (model, *students):
        found.append(Sweep("fixed", name, "masked-diffusion", values_of("per_step", (1, 2, 4), block=block)))
        at = values_of("threshold", _THRESHOLDS, block=block, cache="none")
        found.append(Sweep("threshold", name, "fast-dllm", at))
    found.append(Sweep("energy", model, "edlm", values_of("per_step", (2, 4), candidates=4, block=block)))
    if filters:
        at = values_of("threshold", (0.9, 0.8, 0.7, 0.5), block=block, filter=filters)
        found.append(Sweep("filter", model, "learn2pd", at))
    return found


def table(points: Sequence[SweepPoint]) -> Table:
    """Return the points beside the first of them."""
    first, cells = points[0], []
    for point in points:
        shown = {key: value for key, value in point.settings.items() if key not in ("block", "cache", "filter")}
        is_equal = point.nll <= first.nll + _NATS and point.entropy >= first.entropy - _ENTROPY
        numbers = [f"{point.tokens_per_forward:.2f}", f"{point.nll:.2f}", f"{point.entropy:.2f}"]
        cells.append([point.model, f"`{point.method}`", spell(shown), *numbers, "yes" if is_equal else "no"])
    columns = ("model", "method", "settings", "tokens per forward", "nats per token", "entropy", "equal")
    return Table("", columns, cells, left=3)


def _work(given: argparse.Namespace) -> None:
    names = {Path(student).name: student for student in given.student}
    asked = sweeps(given.model, list(names), given.filter, given.block)
    models = {given.model: load(given.model)} | {name: load(where) for name, where in names.items()}
    item = stories(given.num, given.max_tokens, given.temperature)
    points = list(measure(asked, [item], models, load(given.judge), lambda text: print(text, file=sys.stderr)))
    found = table(points)
    print(found.markdown())
    if given.json:
        told = {name: getattr(given, name) for name in _TOLD}
        rows = [point.to_dict() for point in points]
        for row in rows:  # a file's place is the caller's own
            row["settings"] = {key: value for key, value in row["settings"].items() if key != "filter"}
        new_report("canvas-fewer", told, describe(), rows, tables=[found]).write(given.json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("fewer", __doc__, threads=1)
    parser.add_argument("model", help="the masked model, e.g. stories-mask")
    parser.add_argument("--student", action="append", default=[], metavar="DIR", help="a distilled one (repeatable)")
    parser.add_argument("--filter", default="", metavar="FILE", help="a file of outpace.train.filter")
    parser.add_argument("--judge", default="stories", help="the causal model whose nats are told")
    parser.add_argument("--prompts", dest="num", type=int, default=12, help="shipped stories to continue")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
