"""The bound on the log-likelihood of held-out molecules, for networks that write in a learned or a random order.

python -m outpace.train.nar.order_bound runs/molecules-ordered runs/molecules-random --data data
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.models.nar.files import read_nar
from outpace.models.nar.ordered import Ordered, bound
from outpace.train.data import find_data
from outpace.train.export import load_tokenizer
from outpace.train.pairs import encode_pairs

from .molecules import MOLECULES
from .network import TrainedNar

__all__ = ["main", "nats"]


def nats(directory: Path, data: Path, samples: int = 8, seed: int = 0) -> tuple[float, float]:
    """Return minus the bound in nats per token of the held-out molecules, ends included, and its standard error.

    Raises:
        ConfigError: the model has no order, or the texts are missing.
    """
    net = read_nar(directory)
    if not isinstance(net, Ordered):
        raise ConfigError("This model writes in no order of its own.", "Train molecules-ordered.")
    pairs, longest = MOLECULES.pairs(data, "valid"), net.config.length - 1
    batches = encode_pairs(load_tokenizer(directory), pairs, 2048, longest, seed)
    shell, found, tokens = TrainedNar(net).eval(), list[torch.Tensor](), 0
    torch.manual_seed(seed)
    for step in range(batches.steps_per_epoch):
        with torch.no_grad():
            run = shell.begin(batches.batch(step))
        found.append(-bound(net, run, samples).double())
        tokens += int(run.lengths.sum()) + len(run.lengths)
    values = torch.cat(found)
    return float(values.sum()) / tokens, float(values.std()) * len(values) ** 0.5 / tokens


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.nar.order_bound", description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", help="directories")
    parser.add_argument("--samples", type=int, default=8, help="orders drawn for each molecule")
    parser.add_argument("--data", type=Path)
    given = parser.parse_args(arguments)
    return guarded(lambda _: _print(given), [])


def _print(given: argparse.Namespace) -> int:
    for model in given.models:
        value, error = nats(model, find_data(given.data), given.samples)
        print(f"{model.name}: at most {value:.3f} nats per token (standard error {error:.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
