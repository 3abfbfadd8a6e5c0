"""A classifier of texts that is a product over tokens, for `--law hmm:attribute=DIR`.

The attribute is that a text holds no match of a pattern, say no sad word. Its chance is modelled as exp(sum of w(x_t)),
w at most 0, which the look-ahead of a hidden Markov model can expect exactly (TRACE, arXiv 2504.18535); w is fitted by
cross-entropy on the model's own texts.

    python -m outpace.train.attribute --texts DIR/texts.npz --without "sad|cry" --out DIR
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from outpace.api.engine import load
from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.laws.markov import Floats, save_factors
from outpace.train.hmm import read_texts

__all__ = ["fit", "main"]

_SMALLEST = 1e-6  # of 1 - p, so that its logarithm is finite


def fit(texts: Sequence[Sequence[int]], labels: Sequence[bool], vocab_size: int, steps: int = 300) -> Floats:
    """Return log factors [V], 0 or less, that make the labels likeliest, with a small penalty on their sum.

    Args:
        texts: token ids.
        labels: whether each has the attribute.
        vocab_size: V.
        steps: of Adam, over all texts each.
    """
    ids = torch.tensor([token for text in texts for token in text])
    rows = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor([len(text) for text in texts]))
    wanted, raw = torch.tensor(labels, dtype=torch.float32), torch.full((vocab_size,), -6.0, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.1)
    for _ in range(steps):
        loss = _loss(-torch.nn.functional.softplus(raw), ids, rows, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found: Floats = -torch.nn.functional.softplus(raw.detach()).double().numpy()
    return found


def _loss(factors: Tensor, ids: Tensor, rows: Tensor, wanted: Tensor) -> Tensor:
    log_chance = torch.zeros_like(wanted).index_add(0, rows, factors[ids])
    against = torch.log1p(-log_chance.exp().clamp(max=1 - _SMALLEST))
    return -(wanted * log_chance + (1 - wanted) * against).mean() - 1e-4 * factors.sum() / len(wanted)


def main(arguments: list[str] | None = None) -> int:
    """Label texts, fit, save; prints how many held-out texts are told right."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.attribute", description=__doc__)
    parser.add_argument("--model", default="stories", help="whose tokens the texts are made of")
    parser.add_argument("--texts", type=Path, required=True, metavar="FILE", help="texts.npz of outpace.train.hmm")
    parser.add_argument("--without", required=True, metavar="PATTERN", help="texts with a match lack the attribute")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    given = parser.parse_args(arguments)
    lm, texts = load(given.model), read_texts(given.texts)
    assert lm.tokenizer is not None
    labels = [re.search(given.without, lm.tokenizer.decode(text)) is None for text in texts]
    if len({*labels}) < 2:
        raise ConfigError(
            f"All texts are alike under the pattern {given.without!r}.", "Give one that some texts match."
        )
    held, vocab = max(1, len(texts) // 10), lm.target.capabilities.vocab_size
    factors = fit(texts[held:], labels[held:], vocab)
    save_factors(given.out, factors, f"without {given.without}")
    chances = np.array([np.exp(factors[text].sum()) for text in texts[:held]])
    right = ((chances > 0.5) == np.array(labels[:held])).mean()
    print(f"{100 * right:.1f}% of {held} held-out texts told right; {100 * np.mean(labels):.1f}% have the attribute")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
