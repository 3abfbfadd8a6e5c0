"""How many held-out tokens come back from the vectors of several tokens that a model writes.

python -m outpace.train.continuous.reconstruction runs/stories-chunks --data data
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.models.continuous.compressor import Compressor, filled
from outpace.models.nar.files import read_nar
from outpace.train.data import find_data
from outpace.train.export import load_tokenizer
from outpace.train.nar.network import TrainedNar
from outpace.train.nar.stories import STORY_NEXT
from outpace.train.pairs import encode_pairs

__all__ = ["main", "returned"]


@torch.no_grad()
def returned(directory: Path, data: Path, noise: float = 0.0, seed: int = 0) -> tuple[int, int]:
    """Return how many tokens of the held-out stories, their ends included, come back, and how many there are.

    Args:
        directory: of the model.
        data: folder of the texts.
        noise: standard deviation of what is added to each number of a vector.
        seed: of the noise.

    Raises:
        ConfigError: the model has no autoencoder, or the texts are missing.
    """
    net: Any = read_nar(directory)
    if not isinstance(getattr(net, "compressor", None), Compressor):
        raise ConfigError("This model has no autoencoder.", "Train stories-chunks or stories-latents.")
    length, end = net.config.length, net.config.end_token
    batches = encode_pairs(load_tokenizer(directory), STORY_NEXT.pairs(data, "valid"), 2048, length - 1, seed)
    shell, right, tokens = TrainedNar(net).eval(), 0, 0
    torch.manual_seed(seed)
    for step in range(batches.steps_per_epoch):
        run = shell.begin(batches.batch(step))
        text = filled(run, length, end)
        vectors = net.clean(text)
        said = net.compressor.decode(vectors + noise * torch.randn_like(vectors)).argmax(-1)
        is_text = torch.arange(length) <= run.lengths[:, None]
        right, tokens = right + int((said == text)[is_text].sum()), tokens + int(is_text.sum())
    return right, tokens


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.continuous.reconstruction", description=__doc__)
    parser.add_argument("model", type=Path, help="directory")
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation of noise on every number")
    parser.add_argument("--data", type=Path)
    given = parser.parse_args(arguments)
    return guarded(lambda _: _print(given), [])


def _print(given: argparse.Namespace) -> int:
    right, tokens = returned(given.model, find_data(given.data), given.noise)
    print(f"{right / tokens:.2%} of {tokens:,} tokens come back, ends included")
    return 0


if __name__ == "__main__":
    sys.exit(main())
