"""How many forwards a token takes that an any-order network writes in bursts, and how likely the texts are.

    python -m outpace.bench.any_order runs/stories-any-order --json any-order.json
    python -m outpace.bench.any_order runs/copies-any-order --task copy --max-tokens 12

Nats are those of the network itself, read once more from left to right: of all orders the one that no burst has chosen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from outpace.api.engine import LanguageModel, load
from outpace.bench.distinct import PROMPTS
from outpace.bench.machine import describe
from outpace.bench.report import Table, new_report
from outpace.errors import CapabilityError, ConfigError
from outpace.failures import guarded
from outpace.methods.registry import read_spelled
from outpace.models.any_order_model import AnyOrderModel
from outpace.tasks import test_examples

__all__ = ["main", "measure", "nats"]

METHODS = ("sigma-gpt:most=1", "any-subset", "sigma-gpt", "sigma-gpt:most=8", "sigma-gpt:most=4")
_HEADS = ("method", "forwards per token", "nats per token", "error", "texts")


def nats(lm: LanguageModel, prompt: Sequence[int], text: Sequence[int]) -> float:
    """Return the mean negative log-likelihood of a text's tokens behind its prompt, read from left to right.

    Raises:
        CapabilityError: the model is no network over shuffled places.
    """
    if not isinstance(lm.target, AnyOrderModel):
        raise CapabilityError(f"{lm.name} does not write in any order.", "Train one: outpace train stories-any-order.")
    whole = torch.tensor([[*prompt, *text]])
    with torch.inference_mode():
        laws = lm.target.net(whole, torch.arange(whole.shape[1]).unsqueeze(0))
    found = laws.double().log_softmax(-1).gather(2, whole.unsqueeze(2))[0, len(prompt) :, 0]
    return -float(found.mean())


def measure(
    lm: LanguageModel, method: str, prompts: Sequence[str], seeds: int, max_tokens: int, temperature: float
) -> dict[str, Any]:
    """Return the figures of a method, over all prompts and seeds; the error is that of the mean of nats."""
    name, options = read_spelled(method)
    forwards, tokens, found = 0, 0, list[float]()
    for prompt in prompts:
        for seed in range(seeds):
            one = lm.generate(
                prompt,
                method=name,
                options=options,
                seed=seed,
                max_tokens=max_tokens,
                temperature=temperature,
                ignore_eos=True,
            )
            forwards, tokens = forwards + one.usage.target_nfe, tokens + len(one.tokens)
            found.append(nats(lm, one.prompt_tokens, one.tokens))
    spread = torch.tensor(found, dtype=torch.float64)
    error = float(spread.std() / len(found) ** 0.5) if len(found) > 1 else 0.0
    return {
        "method": method,
        "forwards_per_token": forwards / tokens,
        "nats_per_token": float(spread.mean()),
        "error": error,
        "texts": len(found),
    }


def main(arguments: list[str] | None = None) -> int:
    """Print a line per method."""
    parser = argparse.ArgumentParser(description="Forwards and likelihood of texts written in any order.")
    parser.add_argument("model", help="directory of a network over shuffled places")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="methods, settings as in sigma-gpt:most=4")
    parser.add_argument("--max-tokens", type=int, default=32, help="tokens per text")
    parser.add_argument("--temperature", type=float, default=1.0, help="temperature of every draw")
    parser.add_argument("--task", default="", help="questions of a list task in place of beginnings of stories")
    parser.add_argument("--seeds", type=int, default=8, help="texts per prompt")
    parser.add_argument("--json", type=Path, help="write the figures")
    asked = parser.parse_args(arguments)
    if min(asked.seeds, asked.max_tokens) < 1:
        raise ConfigError("There is no text to measure.", "Give at least 1 to --seeds and --max-tokens.")
    lm = load(asked.model)
    prompts = [one.prompt for one in test_examples(asked.task, 16)] if asked.task else PROMPTS[False]
    rows = [measure(lm, method, prompts, asked.seeds, asked.max_tokens, asked.temperature) for method in asked.methods]
    shown = ("forwards_per_token", "nats_per_token", "error")
    cells = [[row["method"], *(f"{row[key]:.2f}" for key in shown), str(row["texts"])] for row in rows]
    table = Table("", _HEADS, cells)
    print(table.markdown())
    if asked.json:
        new_report("any-order", vars(asked), describe(), rows, tables=[table]).write(asked.json)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
