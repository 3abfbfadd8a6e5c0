"""A low-rank reward head on a frozen model, for `--law reward:head=DIR`.

Every beginning of a text learns, for the token that follows it, the log-odds that the whole text has the attribute (no
match of a pattern). Beside it a reward of the text read so far is learned, which reads a candidate before it scores it.

    python -m outpace.train.reward --texts DIR/texts.npz --without "sad|cry" --out DIR
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from outpace.api.engine import load
from outpace.errors import ConfigError
from outpace.failures import guarded
from outpace.laws.markov import write_tables
from outpace.laws.reward import KIND
from outpace.train.drafter.states import forward_states
from outpace.train.hmm import read_texts
from outpace.types import Adapter, Outputs

__all__ = ["fit", "main", "states_of"]

_BATCH = 4096  # places of a step


def states_of(target: Adapter, texts: Sequence[Sequence[int]]) -> Tensor:
    """Return the last hidden state behind every token of all texts, [N, H], text by text."""
    found = []
    for at in range(0, len(texts), 16):
        batch = texts[at : at + 16]
        rows = forward_states(target, batch, Outputs(has_last=True, has_logits=False)).float()
        found += [row[: len(text)] for row, text in zip(rows, batch, strict=True)]
    return torch.cat(found)


def fit(
    states: Tensor, texts: Sequence[Sequence[int]], labels: Sequence[bool], vocab_size: int, rank: int, steps: int
) -> tuple[dict[str, Tensor], list[float]]:
    """Return the tables `down` [H, r], `up` [r, V] and `value` [H], and the loss of each step.

    Args:
        states: [N, H] of `states_of`.
        texts, labels: token ids, and whether each text has the attribute.
        vocab_size: V.
        rank: r.
        steps: of Adam.
    """
    ids = torch.tensor([token for text in texts for token in [*text[1:], -1]])
    wanted = torch.cat([torch.full((len(text),), float(label)) for text, label in zip(texts, labels, strict=True)])
    generator, width = torch.Generator().manual_seed(0), states.shape[1]
    down = (torch.randn(width, rank, generator=generator) / width**0.5).requires_grad_()
    up, value, bias = torch.zeros(vocab_size, rank, requires_grad=True), torch.zeros(width), torch.zeros(2)
    optimizer = torch.optim.AdamW([down, up, value.requires_grad_(), bias.requires_grad_()], lr=1e-2, weight_decay=1e-2)
    places, losses = torch.nonzero(ids >= 0)[:, 0], list[float]()
    size = min(_BATCH, len(places))
    for _ in range(steps):
        chosen = places[torch.randint(len(places), (size,), generator=generator)]
        ahead = ((states[chosen] @ down) * up[ids[chosen]]).sum(-1) + bias[0]
        read = states[chosen + 1] @ value + bias[1]
        loss = sum(torch.nn.functional.binary_cross_entropy_with_logits(one, wanted[chosen]) for one in (ahead, read))
        assert isinstance(loss, Tensor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return {"down": down.detach(), "up": up.detach().mT, "value": value.detach()}, losses


def main(arguments: list[str] | None = None) -> int:
    """Label texts, fit, save."""
    parser = argparse.ArgumentParser(prog="python -m outpace.train.reward", description=__doc__)
    parser.add_argument("--model", default="stories", help="the frozen model")
    parser.add_argument("--texts", type=Path, required=True, metavar="FILE", help="texts.npz of outpace.train.hmm")
    parser.add_argument("--without", required=True, metavar="PATTERN", help="texts with a match lack the attribute")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--most", type=int, default=1000, help="texts to learn from")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args(arguments)
    lm, texts = load(given.model), read_texts(given.texts)[: given.most]
    assert lm.tokenizer is not None
    labels = [re.search(given.without, lm.tokenizer.decode(text)) is None for text in texts]
    if len({*labels}) < 2:
        raise ConfigError(
            f"All texts are alike under the pattern {given.without!r}.", "Give one that some texts match."
        )
    vocab, states = lm.target.capabilities.vocab_size, states_of(lm.target, texts)
    tables, losses = fit(states, texts, labels, vocab, given.rank, given.steps)
    write_tables(given.out, {"model_type": KIND, "attribute": f"without {given.without}"}, tables)
    share = sum(labels) / len(labels)
    print(f"loss from {losses[0]:.3f} to {losses[-1]:.3f}; {100 * share:.1f}% of {len(texts)} texts have the attribute")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
