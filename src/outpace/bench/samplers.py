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

import torch

from outpace.api.engine import load
from outpace.bench.canvas import Arm, Point, measure, stories
from outpace.errors import OutpaceError

__all__ = ["SETTINGS", "main", "table"]

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


def measured(model: str, judge: str, prompts: int, max_tokens: int, temperature: float) -> Iterator[Point]:
    """Yield a point per setting on one model, the reference first."""
    models = {model: load(model)}
    # Every sampler under the cache that changes nothing, where it has a choice.
    arms = [Arm(name, model, name, ({"block": _BLOCK, **settings},)) for name, settings in SETTINGS]
    return measure(arms, [stories(prompts, max_tokens, temperature)], models, load(judge))


def table(points: Sequence[Point]) -> str:
    """Return the points as a Markdown table, each beside the first of its model."""
    lines = ["| model | method | settings | forwards | positions | bits per token |", "|---|---|---|--:|--:|--:|"]
    first = points[0]
    for point in points:
        if point.model != first.model:
            first = point
        shown = ", ".join(f"{key}={value}" for key, value in point.settings.items() if key != "block") or "defaults"
        forwards = first.tokens_per_forward / point.tokens_per_forward
        positions = point.positions / point.tokens / (first.positions / first.tokens)
        bits = point.nll / math.log(2)
        lines.append(
            f"| {point.model} | `{point.method}` | {shown} | {forwards:.2f} | {positions:.2f} | {bits:.2f} |",
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.bench.samplers", description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", help="masked models, e.g. stories-block")
    parser.add_argument("--judge", default="stories", help="the causal model whose bits are told")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    points: list[Point] = []
    try:
        for model in given.models:
            for point in measured(model, given.judge, given.prompts, given.max_tokens, given.temperature):
                points.append(point)
                print(f"{model}: {point.method} {dict(point.settings)}", file=sys.stderr)
    except OutpaceError as error:
        print(f"{error} {error.hint}".strip(), file=sys.stderr)
        return 2
    print(table(points))
    return 0


if __name__ == "__main__":
    sys.exit(main())
