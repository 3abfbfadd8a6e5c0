"""Fewer forwards on a masked model: distilled and filtered models beside one token per step and the threshold sampler.

    python -m outpace.bench.fewer stories-mask --student runs/stories-mask-rounds --filter filter.json --json fewer.json

One row per setting: tokens per forward, the nats per token of what was written under a causal judge, and the entropy of
its tokens. Texts are drawn at one temperature, one seed per prompt. "Equal" in the last column means: at most 0.05 nats
more than one token per step of the first model, and at most 0.1 nats less entropy. A guide that is the judge as well
judges itself; a small one, which is not, stands beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from outpace.api.engine import load
from outpace.bench.canvas import Sweep, SweepPoint, measure, spell, stories, values_of
from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Table, new_report, read_report

__all__ = ["main", "sweeps", "table"]

_NATS, _ENTROPY = 0.05, 0.1
_TOLD = ("model", "judge", "num", "max_tokens", "temperature", "block")
_THRESHOLDS = (0.7, 0.5, 0.35)


def sweeps(model: str, students: Sequence[str], filters: str, block: int, told: Sequence[str] = ()) -> list[Sweep]:
    """Return what is measured, one token per step of the model first.

    Args:
        model: the masked model, as sweeps name it.
        students: distilled ones.
        filters: a file for `learn2pd`; "" = none.
        block: places per block.
        told: models that were trained for `rcd`.
    """
    found = []
    for name in (model, *students):
        found.append(Sweep("fixed", name, "masked-diffusion", values_of("per_step", (1, 2, 4), block=block)))
        at = values_of("threshold", _THRESHOLDS, block=block, cache="none")
        found.append(Sweep("threshold", name, "fast-dllm", at))
    found.append(Sweep("energy", model, "edlm", values_of("per_step", (2, 4), candidates=4, block=block)))
    # Two places that are weighed as they are written: what candidates can do where their weights vary little.
    pair = {"block": 2, "per_step": 2}
    found.append(Sweep("pairs", model, "edlm", values_of("candidates", (1, 4, 32), **pair)))
    found.append(
        Sweep("pairs, small guide", model, "edlm", values_of("candidates", (32,), guide="stories-draft", **pair))
    )
    if filters:
        at = values_of("threshold", (0.9, 0.8, 0.7, 0.5), block=block, filter=filters)
        found.append(Sweep("filter", model, "learn2pd", at))
    for name in told:
        found.append(Sweep("untold", name, "masked-diffusion", values_of("per_step", (1, 2, 4), block=block)))
        found.append(Sweep("told", name, "rcd", values_of("per_step", (1, 2, 4), block=block)))
    return found


def table(points: Sequence[SweepPoint]) -> Table:
    """Return the points beside the first of them."""
    first, cells = points[0], []
    for point in points:
        shown = {key: value for key, value in point.settings.items() if key not in ("cache", "filter")}
        is_equal = point.nll <= first.nll + _NATS and point.entropy >= first.entropy - _ENTROPY
        guided = point.draft_forwards / max(point.tokens, 1)
        numbers = [f"{value:.2f}" for value in (point.tokens_per_forward, guided, point.nll, point.entropy)]
        cells.append([point.model, f"`{point.method}`", spell(shown), *numbers, "yes" if is_equal else "no"])
    columns = (
        "model",
        "method",
        "settings",
        "tokens per forward",
        "guide forwards per token",
        "nats per token",
        "entropy",
        "equal",
    )
    return Table("", columns, cells, left=3)


def _bare(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without the place of a file, which is the caller's own."""
    return {key: value for key, value in settings.items() if key != "filter"}


def _work(given: argparse.Namespace) -> None:
    names = {Path(student).name: student for student in given.student}
    told = {Path(one).name: one for one in given.residual}
    asked = sweeps(given.model, list(names), given.filter, given.block, list(told))
    names |= told
    models = {given.model: load(given.model)} | {name: load(where) for name, where in names.items()}
    item = stories(given.num, given.max_tokens, given.temperature)
    points = [SweepPoint.from_dict(row) for row in read_report(given.add).rows] if given.add else []
    known = [(point.model, point.method, _bare(point.settings)) for point in points]
    asked = [
        replace(one, settings=tuple(at for at in one.settings if (one.model, one.method, _bare(at)) not in known))
        for one in asked
    ]
    points += measure(asked, [item], models, load(given.judge), lambda text: print(text, file=sys.stderr))
    found = table(points)
    print(found.markdown())
    if given.json:
        settings = {name: getattr(given, name) for name in _TOLD}
        rows = [point.to_dict() for point in points]
        for row in rows:
            row["settings"] = _bare(row["settings"])
        new_report("canvas-fewer", settings, describe(), rows, tables=[found]).write(given.json)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("fewer", __doc__, threads=1)
    parser.add_argument("model", help="the masked model, e.g. stories-mask")
    parser.add_argument("--student", action="append", default=[], metavar="DIR", help="a distilled one (repeatable)")
    parser.add_argument(
        "--residual", action="append", default=[], metavar="DIR", help="one trained for rcd (repeatable)"
    )
    parser.add_argument("--filter", default="", metavar="FILE", help="a file of outpace.train.filter")
    parser.add_argument("--judge", default="stories", help="the causal model whose nats are told")
    parser.add_argument("--prompts", dest="num", type=int, default=12, help="shipped stories to continue")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument(
        "--add", type=Path, metavar="FILE", help="figures of an earlier run, which are not measured again"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
