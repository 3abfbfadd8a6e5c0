"""Who writes how much where two models take turns by entropy, what it costs, and how likely the text is.

    python -m outpace.bench.switching --model stories

Small: the share of tokens that the small model wrote. Cost: weights read per token, as a share of plain decoding with
the large model. Nats: of the large model per token of the text, lower is better.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, run_command
from outpace.bench.distinct import PROMPTS
from outpace.bench.machine import describe
from outpace.bench.report import Table, new_report
from outpace.methods.speculative.entropy_switch import EntropySwitch
from outpace.models.loading import count_parameters, resolve
from outpace.zoo import drafter_of

__all__ = ["main", "measure"]

_COLUMNS = ("threshold", "small, %", "large forwards per token", "cost", "nats")


def measure(lm: LanguageModel, threshold: float, share: float, max_tokens: int, temperature: float) -> dict[str, Any]:
    """Return the figures of one threshold.

    Args:
        lm: the large model.
        threshold: in nats.
        share: of the large model's weights that the small one has.
        max_tokens: per text.
        temperature: 0 = greedy.
    """
    given: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "ignore_eos": True}
    found = lm.generate(list(PROMPTS[False]), method=EntropySwitch(threshold=threshold), **given)
    tokens, usages = sum(len(one.tokens) for one in found), [one.usage for one in found]
    scored = [lm.score([*one.prompt_tokens, *one.tokens]).log_probs[len(one.prompt_tokens) :] for one in found]
    nats = -math.fsum(float(value or 0.0) for row in scored for value in row) / tokens
    large, small = (sum(getattr(one, name) for one in usages) / tokens for name in ("num_steps", "draft_nfe"))
    accepted = sum(one.num_accepted for one in usages) / tokens
    return {
        "threshold": f"{threshold:g}",
        "small": accepted,
        "large": large,
        "cost": large + small * share,
        "nats": nats,
    }


def _work(given: argparse.Namespace) -> None:
    lm = load(given.model)
    parts = [count_parameters(resolve(name)) for name in (drafter_of(given.model), given.model)]
    share = parts[0] / parts[1]
    rows = [measure(lm, value, share, given.max_tokens, given.temperature) for value in given.thresholds]
    cells = [
        [
            one["threshold"],
            f"{100 * one['small']:.0f}",
            *(f"{one[name]:.2f}" for name in ("large", "cost", "nats")),
        ]
        for one in rows
    ]
    asked = {"model": Path(given.model).name, "max_tokens": given.max_tokens, "temperature": given.temperature}
    report = new_report("switching", asked, describe(), rows, tables=[Table("", _COLUMNS, cells)])
    report.write(given.json)
    print(report.markdown())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("switching", __doc__, threads=1)
    parser.add_argument("--model", default="stories", help="the large model, whose card names a small one")
    parser.add_argument("--thresholds", nargs="+", type=float, default=[0.0, 0.5, 1.0, 1.5, 2.0, 3.0, math.inf])
    parser.add_argument("--max-tokens", type=int, default=100)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
