"""Train the filter of `learn2pd`: which places of a step already hold what the text will hold in the end?

    python -m outpace.train.filter stories-mask --out filter.json
    python -m outpace.train.filter stories-block --tasks copy,insert,remove --temperature 0 --out filter.json

The model writes texts one token per step. Each place of each step is an example: what the step knows of it, and whether
the token drawn there is the one that the finished text has. For research: a filter fits the texts that it has seen.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outpace.api.engine import LanguageModel, load
from outpace.canvas.reading import Reading
from outpace.canvas.row import CanvasRow, Floats, Ids
from outpace.canvas.rules.filtered import FEATURES, PlaceFilter, features
from outpace.canvas.rules.ranked import Ranked
from outpace.canvas.rules.rule import Choice
from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.tasks import training_examples

__all__ = ["Examples", "fit", "gather", "main"]

_OPENINGS = ("Once upon a time", "One day,", "There was a", "Tom and his", "A bird", "In the park,", "It was", "Lily")


@dataclass(frozen=True, slots=True)
class _Noted(Ranked):
    """The rule as it is, with every reading noted: (features, places, drawn tokens)."""

    log: list[tuple[Floats, Ids, Ids]] = field(default_factory=list, compare=False)

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        inside = reading.within(row.end)
        self.log.append((features(reading, row)[inside], reading.places[inside], reading.tokens[inside]))
        return Ranked.choose(self, reading, row, memo)


@dataclass(frozen=True)
class _Watched(MaskedDiffusion):
    """One token per step, with the readings noted."""

    log: Any = None

    @property
    def rule(self) -> _Noted:
        return _Noted(log=self.log)


@dataclass(frozen=True, slots=True)
class Examples:
    """What a filter learns from.

    Attributes:
        known: [N, F].
        is_final: [N] whether the drawn token is the finished text's.
    """

    known: Floats
    is_final: Floats


def gather(lm: LanguageModel, texts: Sequence[str], max_tokens: int, block: int, temperature: float) -> Examples:
    """Let a model write on, one token per step, and return what every step knew and whether it was right."""
    known, right = list[Floats](), list[Floats]()
    for seed, text in enumerate(texts):
        log: list[tuple[Floats, Ids, Ids]] = []
        prompt = [*lm.end_tokens[:1], *lm.encode(text)]
        # Seeds of their own, so that no benchmark's draws are among the examples.
        result = lm.generate(
            prompt,
            method=_Watched(block=block, log=log),
            max_tokens=max_tokens,
            temperature=temperature,
            seed=10_000 + seed,
        )
        final = np.array([*prompt, *result.tokens])
        for seen, places, tokens in log:
            inside = places < len(final)
            known.append(seen[inside])
            right.append((final[places[inside]] == tokens[inside]).astype(np.float64))
    return Examples(np.concatenate(known), np.concatenate(right))


def fit(examples: Examples, vocab_size: int, width: int = 16, steps: int = 600, seed: int = 0) -> PlaceFilter:
    """Return the filter that tells right from wrong best, by cross-entropy (full batches, Adam)."""
    source = torch.Generator().manual_seed(seed)
    known, wanted = torch.from_numpy(examples.known), torch.from_numpy(examples.is_final)
    hidden = torch.randn(width, len(FEATURES) + 1, generator=source, dtype=torch.float64).requires_grad_()
    out = torch.zeros(width + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([hidden, out], lr=0.02)
    for _ in range(steps):
        inner = torch.tanh(known @ hidden[:, :-1].T + hidden[:, -1])
        loss: Tensor = torch.nn.functional.binary_cross_entropy_with_logits(inner @ out[:-1] + out[-1], wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return PlaceFilter(hidden.detach().numpy(), out.detach().numpy(), vocab_size)


def _work(given: argparse.Namespace) -> int:
    if given.texts < 1:
        raise ConfigError(f"{given.texts} texts were asked for.", "A filter learns from one text or more.")
    given.out.parent.mkdir(parents=True, exist_ok=True)  # before the minutes that the texts take
    torch.set_num_threads(given.threads)
    lm = load(given.model)
    texts = [_OPENINGS[index % len(_OPENINGS)] for index in range(given.texts)]
    if given.tasks:
        names = given.tasks.split(",")
        texts = [example.prompt for name in names for example in training_examples(name, -(-given.texts // len(names)))]
    examples = gather(lm, texts, given.max_tokens, given.block, given.temperature)
    found = fit(examples, lm.target.capabilities.vocab_size)
    held = {"features": FEATURES, "vocab_size": found.vocab_size}
    weights = {"hidden": found.hidden.tolist(), "out": found.out.tolist()}
    given.out.write_text(json.dumps(held | weights) + "\n", encoding="utf-8")
    told = found.score(examples.known) >= 0.5
    share = float((told == (examples.is_final > 0.5)).mean())
    print(f"{len(examples.known)} places, {examples.is_final.mean():.1%} of them right; the filter tells {share:.1%}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Train a filter and write it; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.filter", description="Train the filter of learn2pd.")
    parser.add_argument("model", help="a masked model, e.g. stories-mask")
    parser.add_argument("--out", required=True, type=Path, help="file to write")
    parser.add_argument("--texts", type=int, default=24, help="texts that the model writes")
    parser.add_argument("--tasks", default="", help="answers to these (copy,insert,...) in place of stories")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    given = parser.parse_args(arguments)
    return guarded(lambda _: _work(given), [])


if __name__ == "__main__":
    sys.exit(main())
