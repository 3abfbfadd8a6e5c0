"""The bound on the negative log-likelihood of held-out texts, for a diffusion model that has one.

python -m outpace.train.continuous.likelihood runs/stories-plaid --data data
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch

from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.models.continuous.losses import bound
from outpace.models.continuous.network import Diffusion
from outpace.models.nar.files import read_nar
from outpace.models.nar.network import NarNet
from outpace.train.data import find_data
from outpace.train.export import load_tokenizer
from outpace.train.nar.network import TrainedNar
from outpace.train.nar.stories import STORY_GAPS
from outpace.train.pairs import encode_pairs

__all__ = ["check_bound", "main", "nats"]


def check_bound(net: NarNet) -> Diffusion:
    """Return the network.

    Raises:
        ConfigError: it bounds no likelihood.
    """
    if isinstance(net, Diffusion) and net.config.objective == "bound":
        return net
    raise ConfigError("This model gives no bound on a likelihood.", "Train one with the objective `bound`.")


@torch.no_grad()
def nats(directory: Path, data: Path, steps: int = 0, samples: int = 4, seed: int = 0) -> tuple[float, float, int]:
    """Return the bound in nats per token, ends included, of the held-out stories, its standard error, and the tokens.

    Args:
        directory: of the model.
        data: folder of the texts.
        steps: of the ancestral sampler whose bound it is; 0 = infinitely many.
        samples: times drawn for each text.
        seed: of the draws.

    Raises:
        ConfigError: the model has no bound, or the texts are missing.
    """
    net = check_bound(read_nar(directory))
    batches = encode_pairs(load_tokenizer(directory), STORY_GAPS.pairs(data, "valid"), 2048, net.config.length, seed)
    shell, found, tokens = TrainedNar(net).eval(), list[torch.Tensor](), 0
    torch.manual_seed(seed)
    for step in range(batches.steps_per_epoch):
        run = shell.begin(batches.batch(step))
        found.append(bound(net, run, steps, samples).double())
        tokens += int(run.lengths.sum()) + len(run.lengths)
    values = torch.cat(found)
    return float(values.sum()) / tokens, float(values.std()) * math.sqrt(len(values)) / tokens, tokens


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.continuous.likelihood", description=__doc__)
    parser.add_argument("model", type=Path, help="directory")
    parser.add_argument("--steps", type=int, default=0, help="of the sampler; 0 = infinitely many")
    parser.add_argument("--samples", type=int, default=4, help="times drawn for each text")
    parser.add_argument("--data", type=Path)
    given = parser.parse_args(arguments)
    return guarded(lambda _: _print(given), [])


def _print(given: argparse.Namespace) -> int:
    value, error, tokens = nats(given.model, find_data(given.data), given.steps, given.samples)
    print(f"at most {value:.3f} nats per token (standard error {error:.3f}), {tokens:,} tokens with their ends")
    return 0


if __name__ == "__main__":
    sys.exit(main())
