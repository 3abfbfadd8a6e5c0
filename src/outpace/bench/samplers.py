"""Samplers that look beyond one step, at the settings that `docs/diffusion.md` speaks of: forwards, positions, bits.

    python -m outpace.bench.samplers stories-block stories-mask --prompts 12 --max-tokens 64

One row per setting: forwards per token against one token per step, positions likewise, and the bits per token of what
was written under a causal judge. Texts are drawn at one temperature, one seed per prompt.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from outpace.api.engine import load
from outpace.bench.canvas import Sweep, SweepPoint, measure, spell, stories
from outpace.bench.command import new_parser, run_command
from outpace.bench.report import Table

__all__ = ["SETTINGS", "main", "measured", "table"]

_BLOCK = 16
SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("masked-diffusion", {}),
    ("masked-diffusion", {"per_step": 2}),
    ("fast-dllm", {"threshold": 0.9}),
    ("fast-dllm", {"threshold": 0.7}),
    ("fast-dllm", {"threshold": 0.5}),
    ("prophet", {}),
    ("prophet", {"early": 5.0, "middle": 3.0, "late": 1.5}),
    ("ccd", {}),
    ("ccd", {"history": 3}),
    ("ccd", {"top": 3}),
    ("ccd", {"history": 3, "top": 2}),
    ("ete", {}),
    ("ete", {"candidates": 1}),
    ("lrd", {}),
    ("lrd", {"rounds": 1}),
    ("lrd", {"rounds": 20, "threshold": 1.0}),
    ("lrd", {"settle": 0.03}),
    ("lrd", {"threshold": 0.5}),
    ("adablock", {"threshold": 0.5}),
)


def measured(model: str, judge: str, prompts: int, max_tokens: int, temperature: float) -> Iterator[SweepPoint]:
    """Yield a point per setting on one model, the reference first."""
    # Every sampler under the cache that changes nothing, where it has a choice.
    sweeps = [Sweep(name, model, name, ({"block": _BLOCK, **settings},)) for name, settings in SETTINGS]
    return measure(sweeps, [stories(prompts, max_tokens, temperature)], {model: load(model)}, load(judge))


def table(points: Sequence[SweepPoint]) -> str:
    """Return the points as a Markdown table, each beside the first of its model."""
    cells, first = [], points[0]
    for point in points:
        if point.model != first.model:
            first = point
        shown = spell({key: value for key, value in point.settings.items() if key != "block"})
        forwards = first.tokens_per_forward / point.tokens_per_forward
        positions = point.positions / point.tokens / (first.positions / first.tokens)
        numbers = [f"{number:.2f}" for number in (forwards, positions, point.nll / math.log(2))]
        cells.append([point.model, f"`{point.method}`", shown, *numbers])
    columns = ("model", "method", "settings", "forwards", "positions", "bits per token")
    return Table("", columns, cells, left=3).markdown()


def _work(given: argparse.Namespace) -> None:
    points: list[SweepPoint] = []
    for model in given.models:
        for point in measured(model, given.judge, given.prompts, given.max_tokens, given.temperature):
            points.append(point)
            print(f"{model}: {point.method} {dict(point.settings)}", file=sys.stderr)
    print(table(points))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("samplers", __doc__, threads=1)
    parser.add_argument("models", nargs="+", help="masked models, e.g. stories-block")
    parser.add_argument("--judge", default="stories", help="the causal model whose bits are told")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.7)
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
