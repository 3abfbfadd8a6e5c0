"""What gradient steps on cached states are worth: the likelihood of the tokens that come next, in held-out texts.

    python -m outpace.bench.past --model stories --data data --json FILE

Each text's beginning is the prompt, read as the law `hso` says; the tokens behind it, which no step has seen, are
judged. No weight changes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

from outpace.api.engine import load
from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.errors import ConfigError
from outpace.laws.hso import HiddenStates, Optimised
from outpace.train.data import find_data
from outpace.train.sources import held_out_stories
from outpace.types import Adapter

__all__ = ["judged", "main", "run_past"]


def judged(target: Adapter, law: HiddenStates, text: Sequence[int], count: int) -> tuple[float, float]:
    """Return the mean loss in nats per token of a text's first `count` tokens, read again, and of those behind them."""
    ids, model = torch.tensor(text), Optimised(target, law)
    entries, logits = model.read(ids, count)
    behind = F.cross_entropy(logits[:-1].double(), ids[count + 1 :])
    place = torch.arange(count - law.window, count)
    entries.truncate([count - law.window])
    last = ids[count - law.window : count]
    seen = target.score(last[None], place[None], None, entries).logits[0, :-1]
    return float(F.cross_entropy(seen.double(), last[1:])), float(behind)


def run_past(
    model: str, data: Path | None, rates: Sequence[float], texts: int, prompt: int, behind: int, window: int
) -> Report:
    """Measure and return the report.

    Raises:
        ConfigError: a prompt of fewer than two windows, or nothing to judge.
        CapabilityError: the model has no gradient.
    """
    if prompt < 2 * window or behind < 2 or texts < 1:
        raise ConfigError("There is nothing to optimise or to judge.", "Ask for two windows of prompt or more.")
    lm = load(model, dtype="float64", is_compiled=False)
    ids = (lm.encode(one)[: prompt + behind] for one in held_out_stories(find_data(data)))
    chosen = [text for text in ids if len(text) == prompt + behind][:texts]
    rows, plain = list[dict[str, float]](), list[float]()
    for rate in (0.0, *rates):
        law = HiddenStates(steps=1 if rate else 0, rate=rate, window=window)
        found = [judged(lm.target, law, text, prompt) for text in chosen]
        plain = plain or [behind for _, behind in found]
        gains = torch.tensor([before - after for before, (_, after) in zip(plain, found, strict=True)])
        row = {"rate": rate, "window": sum(seen for seen, _ in found) / len(found)}
        row |= {"behind": sum(after for _, after in found) / len(found)}
        rows.append(row | {"gain": float(gains.mean()), "error": float(gains.std()) / len(gains) ** 0.5})
    columns = ("rate", "last window, nats per token", "tokens behind, nats per token", "perplexity", "gain")
    cells = [
        [
            f"{row['rate']:g}" if row["rate"] else "0 (plain)",
            *(f"{row[name]:.3f}" for name in ("window", "behind")),
            f"{math.exp(row['behind']):.2f}",
            f"{row['gain']:.4f} +- {row['error']:.4f}",
        ]
        for row in rows
    ]
    asked = {"model": model, "texts": len(chosen), "prompt": prompt, "behind": behind, "window": window}
    return new_report("past", asked, describe(), rows, tables=[Table("", columns, cells)])


def _work(given: argparse.Namespace) -> None:
    report = run_past(given.model, given.data, given.rates, given.texts, given.prompt, given.behind, given.window)
    report.write(given.json)
    print(report.markdown())


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("past", __doc__, threads=1)
    parser.add_argument("--model", default="stories", help="zoo name or directory")
    parser.add_argument("--data", type=Path, help="folder of public texts (default: ./data)")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.3, 0.6], help="of a step")
    parser.add_argument("--texts", type=int, default=24, help="held-out stories")
    parser.add_argument("--prompt", type=int, default=96, help="tokens that are read")
    parser.add_argument("--behind", type=int, default=48, help="tokens that are judged")
    parser.add_argument("--window", type=int, default=16, help="tokens of a step")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
