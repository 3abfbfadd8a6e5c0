"""What an energy of whole texts knows beyond its language model, on pieces of held-out stories.

    python -m outpace.bench.energies runs/stories-energy --data data --json FILE

Real texts against the model's samples behind the same beginnings: how often the sign of the energy tells them, and how
often the real one has the least energy of all. The residual model's perplexity needs log Z, which is estimated from the
samples of each beginning: plainly (too small a Z, hence a lower bound in the mean) and with the first-order bias taken
out (jackknife; Nowozin 2018).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, run_command
from outpace.bench.machine import describe
from outpace.bench.report import Report, Table, new_report
from outpace.errors import ConfigError
from outpace.models.energy import Energy, read_energy
from outpace.models.loading import resolve
from outpace.train.data import encode_stream, find_data
from outpace.train.export import load_tokenizer
from outpace.train.sources import held_out_stories

__all__ = ["jackknifed", "log_mean_exp", "main", "measure", "run_energies"]

_BEGUN, _WRITTEN = 16, 32  # tokens that are given, and that are judged


def log_mean_exp(values: Tensor) -> float:
    """Return log mean exp of values [N]."""
    return float(values.logsumexp(0)) - math.log(len(values))


def jackknifed(values: Tensor) -> float:
    """Return log mean exp of values [N], N > 1, without the bias of first order in 1 / N."""
    count = len(values)
    less = [log_mean_exp(torch.cat([values[:at], values[at + 1 :]])) for at in range(count)]
    return count * log_mean_exp(values) - (count - 1) * sum(less) / count


def measure(lm: LanguageModel, energy: Energy, text: Sequence[int], samples: int, seed: int) -> dict[str, float]:
    """Return the figures of one text of `_BEGUN` + `_WRITTEN` tokens."""
    given = list(text[:_BEGUN])
    asked: dict[str, Any] = {"max_tokens": _WRITTEN, "temperature": 1.0, "ignore_eos": True, "num_samples": samples}
    drawn = [[*given, *one.tokens] for one in lm.generate(given, seed=seed, **asked)]
    (own,), others = energy([text]), torch.tensor(energy(drawn), dtype=torch.float64)
    log_probs = lm.score(list(text)).log_probs[_BEGUN:]
    nats = -sum(value for value in log_probs if value is not None)
    return {
        "told_real": float(own < 0),
        "told_sample": float((others > 0).double().mean()),
        "is_least": float(own < float(others.min())),
        "model": nats / _WRITTEN,
        "residual": (nats + own + log_mean_exp(-others)) / _WRITTEN,
        "jackknifed": (nats + own + jackknifed(-others)) / _WRITTEN,
    }


def run_energies(directory: Path, model: str, data: Path | None, texts: int, samples: int, seed: int) -> Report:
    """Measure on held-out stories and return the report.

    Raises:
        ConfigError: no text, or fewer than two samples.
        ModelError: the directory holds no energy.
    """
    if texts < 1 or samples < 2:
        raise ConfigError("Texts are compared with samples.", "Ask for a text or more, and for two samples or more.")
    energy, lm = read_energy(directory), load(model)
    chosen = _pieces(held_out_stories(find_data(data))[: 8 * texts], texts)
    rows = [measure(lm, energy, text, samples, seed * texts + at) for at, text in enumerate(chosen)]
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    told = (mean["told_real"] + mean["told_sample"]) / 2
    cells = [
        ["the model alone", "50.0", f"{100 / (samples + 1):.1f}", *[f"{mean['model']:.3f}", _ppl(mean["model"])]],
        [
            "with the energy",
            f"{100 * told:.1f}",
            f"{100 * mean['is_least']:.1f}",
            f"{mean['residual']:.3f} to {mean['jackknifed']:.3f}",
            f"{_ppl(mean['residual'])} to {_ppl(mean['jackknifed'])}",
        ],
    ]
    columns = ("law", "real or sample told, %", "real one is the best, %", "nats per token", "perplexity")
    asked = {"model": model, "texts": len(rows), "samples": samples, "seed": seed}
    return new_report("energies", asked, describe(), [mean], tables=[Table("", columns, cells)])


def _pieces(stories: Sequence[str], count: int) -> list[list[int]]:
    """Return pieces of stories at even distances, cut as in training: wherever they fall."""
    stream = encode_stream(load_tokenizer(resolve("stories")), stories).astype("int64").tolist()
    size = _BEGUN + _WRITTEN
    firsts = [at * (len(stream) - size) // count for at in range(count)]
    return [stream[first : first + size] for first in firsts]


def _ppl(nats: float) -> str:
    return f"{math.exp(nats):.2f}"


def _work(given: argparse.Namespace) -> None:
    report = run_energies(given.energy, given.model, given.data, given.texts, given.samples, given.seed)
    report.write(given.json)
    print(report.markdown())


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("energies", __doc__, threads=1)
    parser.add_argument("energy", type=Path, help="directory of the energy")
    parser.add_argument("--model", default="stories", help="the language model")
    parser.add_argument("--data", type=Path, help="folder of public texts (default: ./data)")
    parser.add_argument("--texts", type=int, default=100, help="pieces of held-out stories")
    parser.add_argument("--samples", type=int, default=32, help="of the model, for each")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
