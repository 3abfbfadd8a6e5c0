"""Trained drafters side by side: how far each is followed, what it costs, and what it makes of the speed.

    python -m outpace.bench.heads --model stories --drafters stories-medusa,stories-eagle --sets stories

Per drafter: drafts kept at each depth of those that came to it (a greedy chain as long as the drafter goes), tokens
written per step by the chain and by the tree that pays (`trained-drafter` without the text), the share of the time that
drafting takes, and speed over plain decoding, prompt by prompt in turns. The drafter's text is held against plain
decoding's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from outpace.api.engine import LanguageModel, load
from outpace.api.result import Result
from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.plots import draw_heads
from outpace.bench.prompts import encode_prompt, read_prompts
from outpace.bench.report import Table
from outpace.bench.rounds import in_turns
from outpace.errors import ConfigError
from outpace.heads.files import read_config
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.speculative.draft_model import DraftModel
from outpace.methods.speculative.trained_drafter import TrainedDrafter
from outpace.models.loading import resolve
from outpace.types import Outcome

__all__ = ["DepthCounts", "Measured", "compare", "main", "table"]

_DEEPEST = 8  # levels, for drafters that go on as long as they are asked


class DepthCounts:
    """How many chains came to each depth, and went beyond it.

    Attributes:
        reached, kept: per depth.
    """

    def __init__(self, depth: int) -> None:
        self.reached, self.kept = [0] * depth, [0] * depth

    def add(self, drafted: int, accepted: int) -> None:
        """Count a chain of so many drafts, of which so many were kept."""
        for depth in range(min(drafted, accepted + 1)):
            self.reached[depth] += 1
            self.kept[depth] += accepted > depth

    def rates(self) -> list[float]:
        """Return the share of drafts kept at each depth of those that came to it; up to the last depth reached."""
        return [kept / reached for kept, reached in zip(self.kept, self.reached, strict=True) if reached]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one drafter gave.

    Attributes:
        name, kind: of the drafter.
        weights: numbers that its pass reads, the output matrix for the tokens that it drafts among them.
        depths: drafts kept at each depth, of those that came to it.
        chain, tree: tokens written per step.
        nodes: proposed per step of the tree.
        draft_share: of the decoding time of the tree.
        speed: tokens per second over plain decoding's: the median over prompts, of chain and tree the better.
        is_exact: every text was plain decoding's.
    """

    name: str
    kind: str
    weights: int
    depths: list[float]
    chain: float
    tree: float
    nodes: float
    draft_share: float
    speed: float
    is_exact: bool


def compare(
    lm: LanguageModel, drafters: Sequence[str], prompts: Sequence[list[int]], max_tokens: int, **arguments: Any
) -> list[Measured]:
    """Return one record per drafter, of the same prompts.

    Args:
        lm: the target.
        drafters: directories, or names of those that ship.
        prompts: ids.
        max_tokens: written per prompt.
        **arguments: of `generate`: temperature, seed, ...
    """
    return [_measure(lm, name, prompts, {"max_tokens": max_tokens, **arguments}) for name in drafters]


def _measure(lm: LanguageModel, name: str, prompts: Sequence[list[int]], arguments: dict[str, Any]) -> Measured:
    config = read_config(resolve(name))
    depth = min(_DEEPEST, max(1, config.depth))
    counts = DepthCounts(depth)

    def watch(_: Any, outcome: Outcome) -> None:
        if outcome.proposal is not None:
            counts.add(outcome.proposal.length[0], outcome.accepted[0])

    methods: dict[str, Method] = {
        "plain": Autoregressive(),
        "chain": DraftModel(draft=name, draft_len=depth, is_adaptive=False),
        "tree": TrainedDrafter(draft=name, has_text=False),
    }
    texts: dict[str, list[Result]] = {side: [] for side in methods}
    for prompt in prompts:
        given = {"prompt": prompt, **arguments}
        sides = {side: partial(_one, lm, method, given) for side, method in methods.items()}
        for side, results in in_turns(sides, 1).items():
            texts[side] += results
        lm.generate(method=methods["chain"], watch=watch, **given)
    drafter = lm.partners.models(methods["tree"], {})["draft"]
    seconds = {side: [_rate(result) for result in results] for side, results in texts.items()}
    return Measured(
        name=Path(name).name,
        kind=config.kind,
        weights=drafter.layer_weights + drafter.head_weights,
        depths=counts.rates(),
        chain=_per_step(texts["chain"]),
        tree=_per_step(texts["tree"]),
        nodes=sum(one.usage.num_proposed for one in texts["tree"]) / sum(one.usage.num_steps for one in texts["tree"]),
        draft_share=statistics.median(one.timing["draft_s"] / one.timing["decode_s"] for one in texts["tree"]),
        speed=max(
            statistics.median(own / plain for own, plain in zip(seconds[side], seconds["plain"], strict=True))
            for side in ("chain", "tree")
        ),
        is_exact=all(
            one.tokens == plain.tokens
            for side in ("chain", "tree")
            for one, plain in zip(texts[side], texts["plain"], strict=True)
        ),
    )


def _one(lm: LanguageModel, method: Method, given: dict[str, Any]) -> Result:
    found = lm.generate(method=method, **given)
    assert isinstance(found, Result)  # one prompt, one sample
    return found


def _rate(result: Result) -> float:
    return len(result.tokens) / result.timing["decode_s"]


def _per_step(results: Sequence[Result]) -> float:
    return sum(len(one.tokens) for one in results) / sum(one.usage.num_steps for one in results)


def table(rows: Sequence[Measured]) -> str:
    """Return the records as a Markdown table, the fastest first."""
    columns = (
        *("drafter", "kind", "weights", "kept at depth 1, 2, ...", "tokens per step, chain", "tree", "nodes"),
        *("drafting, % of the time", "speed over plain", "text"),
    )
    cells = [
        (
            row.name,
            row.kind,
            f"{row.weights / 1e6:.2f} M",
            " ".join(f"{rate:.2f}" for rate in row.depths),
            f"{row.chain:.2f}",
            f"{row.tree:.2f}",
            f"{row.nodes:.1f}",
            f"{100 * row.draft_share:.0f}",
            f"{row.speed:.2f}",
            "plain decoding's" if row.is_exact else "differs",
        )
        for row in sorted(rows, key=lambda row: -row.speed)
    ]
    return Table("", columns, cells, left=2).markdown()


def _work(given: argparse.Namespace) -> None:
    lm = load(given.model, dtype=given.dtype)
    names = [name for name in given.drafters.split(",") if name]
    prompts = [
        encode_prompt(lm, prompt) for name in given.sets.split(",") for prompt in read_prompts(name, given.prompts)
    ]
    if not names:
        raise ConfigError("No drafter is named.", "Give --drafters DIRECTORY,DIRECTORY.")
    machine = describe(lm.device)
    rows = compare(lm, names, prompts, given.max_tokens, temperature=given.temperature, seed=1)
    print(table(rows))
    if given.out:
        out = Path(given.out)
        told = {"model": lm.name, "options": {k: v for k, v in vars(given).items() if k != "out"}, "machine": machine}
        out.write_text(json.dumps({**told, "rows": [asdict(row) for row in rows]}, indent=2) + "\n", encoding="utf-8")
        draw_heads([asdict(row) for row in rows], f"Trained drafters of {lm.name}", out.with_suffix(".png"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the figures; return the exit status."""
    parser = new_parser("heads", __doc__)
    parser.add_argument("--model", required=True, help="the target, e.g. stories")
    parser.add_argument("--drafters", required=True, help="directories, parted by commas")
    parser.add_argument("--sets", default="stories", help="prompt sets or files, parted by commas")
    parser.add_argument("--prompts", type=int, default=8, help="of each set")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", default="", help="a JSON file; a picture is drawn beside it")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
