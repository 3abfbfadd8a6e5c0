"""How much texts repeat themselves under methods that steer away from it, and how alike the model's states are.

    python -m outpace.bench.steer --model stories

Repetition-n is 100 times the share of n-grams of a text that it holds already (Welleck et al. 2020). Isotropy is 1 less
the mean cosine between the last hidden states of two different places of a text (Su et al. 2022): near 0, all states
point the same way, and a rule that compares them has little to go by.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from outpace.api.engine import LanguageModel, load
from outpace.bench.distinct import PROMPTS, distinct
from outpace.errors import CapabilityError
from outpace.failures import guarded
from outpace.methods.registry import read_spelled
from outpace.types import Outputs

__all__ = ["isotropy", "last_states", "measure"]

METHODS = ("autoregressive", "momentum", "contrastive-search")
_ORDERS = (2, 3, 4)


def isotropy(states: Tensor) -> float:
    """Return 1 - the mean cosine between the states [N, F] of two different places, N at least 2."""
    unit = torch.nn.functional.normalize(states.double(), dim=-1)
    cosines = unit @ unit.T
    count = len(unit)
    return 1 - float(cosines.sum() - cosines.trace()) / (count * (count - 1))


def last_states(lm: LanguageModel, text: Sequence[int]) -> Tensor:
    """Return the last hidden state at every token of a text, [N, F].

    Raises:
        CapabilityError: the model gives none, or is no causal decoder.
    """
    offered = lm.target.capabilities
    if not offered.has_hidden or offered.is_canvas or offered.is_encoder_decoder:
        raise CapabilityError("Isotropy is measured on the hidden states of a causal decoder.", "Take another model.")
    tokens, places = torch.tensor([list(text)]), torch.arange(len(text)).unsqueeze(0)
    given = (tokens.to(lm.target.device), places.to(lm.target.device), None, lm.target.new_cache(1, len(text)), None)
    last = lm.target.score(*given, outputs=Outputs(has_last=True)).last
    assert last is not None  # it was asked for
    return last[0]


def measure(lm: LanguageModel, prompts: Sequence[str], method: str, max_tokens: int) -> tuple[float, ...]:
    """Return means over prompts: repetition-2, -3 and -4 in per cent, forwards per token, isotropy."""
    name, options = read_spelled(method)
    found = []
    for prompt in prompts:
        one = lm.generate(prompt, method=name, options=options, max_tokens=max_tokens, ignore_eos=True)
        repeated = [100 * (1 - distinct([one.tokens], order)) for order in _ORDERS]
        found.append((*repeated, one.usage.target_nfe / len(one.tokens), isotropy(last_states(lm, one.tokens))))
    return tuple(sum(column) / len(found) for column in zip(*found, strict=True))


def main(arguments: list[str] | None = None) -> int:
    """Print a line per method."""
    parser = argparse.ArgumentParser(description="How much texts repeat themselves.")
    parser.add_argument("--model", default="stories", help="zoo name or directory of a causal decoder")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="methods, settings as in momentum:resistance=0.1")
    parser.add_argument("--max-tokens", type=int, default=200, help="tokens per text")
    asked = parser.parse_args(arguments)
    lm = load(asked.model)
    names = ("method", *(f"repetition-{order}" for order in _ORDERS), "forwards per token", "isotropy")
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|")
    for method in asked.methods:
        *repeated, forwards, spread = measure(lm, PROMPTS[False], method, asked.max_tokens)
        print(f"| {method} | {' | '.join(f'{x:.1f}' for x in repeated)} | {forwards:.3f} | {spread:.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
