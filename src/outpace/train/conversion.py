"""Whether starting from a causal model pays: a converted and a fresh masked diffusion model, equal steps and data.

    python -m outpace.train.conversion --data DATA --steps 150

Both see the same rows under the same masks. The converted one is annealed from causal to full attention and keeps the
shift of its parent (Gong et al., 2024, arXiv 2410.17891); the fresh one has full attention throughout and the learning
rates with which `stories` itself was trained from random weights. Printed is the bound on held-out stories.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from .bounds import masked_bits
from .data import encode_stream, find_data
from .recipes import RECIPES, Recipe
from .sources import Source, held_out_stories
from .trainer import build

__all__ = ["compare", "main"]


def arms(steps: int, rows: int, sources: Sequence[Source]) -> dict[str, Recipe]:
    """The two recipes, alike but for where they start."""
    whole = sum(source.weight for source in sources)
    shares = tuple(replace(source, weight=source.weight / whole) for source in sources)
    causal, masked = RECIPES["stories"], RECIPES["stories-mask"]
    warmup = min(masked.warmup, max(steps // 5, 1))
    converted = replace(masked, steps=steps, rows=rows, warmup=warmup, long_share=0.0, sources=shares)
    fresh = replace(
        converted, from_scratch=True, anneal=0.0, matrix_rate=causal.matrix_rate, other_rate=causal.other_rate
    )
    return {"converted": converted, "from scratch": fresh}


def compare(recipes: dict[str, Recipe], data: Path, held: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Train each recipe for its steps; returns the bound in bits per byte of `held` for each."""
    found = {}
    for name, recipe in recipes.items():
        trainer = build(recipe, Path("runs") / recipe.name, data, steps=recipe.steps, seed=seed, compiled=False)
        while trainer.step < trainer.steps:
            trainer.advance()
        stream = encode_stream(trainer.tokenizer, held).astype(np.int64)
        network = trainer.network.to("cpu").eval()
        found[name] = masked_bits(network, stream) / sum(len(text.encode()) for text in held)
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.conversion", description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--stories", type=int, default=100, help="held-out stories to measure on")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = find_data(given.data)
    sources = [source for source in RECIPES["stories-mask"].sources if source.name == "tinystories"]
    found = compare(arms(given.steps, given.rows, sources), data, held_out_stories(data)[: given.stories])
    print(json.dumps({"steps": given.steps, "rows": given.rows, "bits_per_byte": found}, indent=2))


if __name__ == "__main__":
    main()
