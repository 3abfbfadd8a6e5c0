"""Train the maps by which phrases of a collection are chosen (`outpace.methods.parallel.copy_phrases`).

    python -m outpace.train.phrases --data DATA --out runs/phrases

The model stays as it is: only maps of its states are trained, a few minutes on one core. Every step cuts some stories
into phrases of others that were drawn for it, and raises the logit of the phrase that was taken against the model's own
logits of all tokens and those of all other phrases. Other copies of the right phrase count neither way.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from outpace.api.engine import LanguageModel, load
from outpace.failures import guarded
from outpace.retrieve.phrases import SHORTEST, PhraseIndex, PhraseMaps, segments
from outpace.retrieve.states import text_states
from outpace.train.sources import tiny_stories

__all__ = ["phrase_loss", "train_phrases"]

_LONGEST_TEXT = 256  # tokens


def phrase_loss(
    index: PhraseIndex,
    texts: Sequence[Sequence[int]],
    states: Sequence[Tensor],
    lm: LanguageModel,
    draw: random.Random,
    most: int = 96,
) -> tuple[Tensor, int, int]:
    """Return the mean loss of the choices that write some texts, and how many were phrases, of how many.

    Args:
        index: of a collection without these texts; its maps get the gradient.
        texts, states: what is written, and the model's state at every token.
        lm: whose output matrix gives the logits of tokens.
        draw: chooses among the copies of a phrase.
        most: choices that are looked at.
    """
    collection = index.tokens.tolist()
    found = [
        (number, *segment)
        for number, text in enumerate(texts)
        for segment in segments(text, collection, index.is_phrase)
    ]
    found = draw.sample(found, min(most, len(found)))
    behind = torch.stack([states[number][at - 1] for number, at, _, _ in found])
    with torch.no_grad():
        tokens = lm.target.head(behind.to(lm.target.device, lm.target.dtype)).float().cpu()
    logits, size = index.logits(behind), index.is_phrase.shape[1]
    chosen: list[Tensor] = []
    for row, (number, at, length, copies) in enumerate(found):
        if not copies:
            chosen.append(tokens[row, texts[number][at]])
            continue
        one = draw.choice(copies)
        chosen.append(logits[row, length - SHORTEST, one])
    hidden = torch.zeros(len(found), len(index.is_phrase), size, dtype=torch.bool)
    for row, (_, _, length, copies) in enumerate(found):
        hidden[row, length - SHORTEST, copies] = bool(copies)
    right = torch.stack(chosen)
    others = logits.masked_fill(hidden, float("-inf")).flatten(1).logsumexp(1)
    is_phrase = torch.tensor([bool(copies) for *_, copies in found])
    total = torch.stack([tokens.logsumexp(1), others, right.masked_fill(~is_phrase, float("-inf"))]).logsumexp(0)
    return (total - right).mean(), int(is_phrase.sum()), len(found)


def train_phrases(
    lm: LanguageModel, texts: Sequence[str], steps: int, seed: int = 0, rate: float = 3e-3
) -> tuple[PhraseMaps, list[float]]:
    """Return maps trained on texts, and the loss of every step."""
    ids = [lm.encode(text, is_special=False)[:_LONGEST_TEXT] for text in texts]
    ids = [text for text in ids if len(text) > SHORTEST]
    states, draw, losses = text_states(lm.target, ids), random.Random(seed), list[float]()
    maps = PhraseMaps.new(states[0].shape[1], seed=seed)
    parts = [maps.prefix, maps.begin, maps.end, maps.length]
    for part in parts:
        part.requires_grad_()
    optimiser = torch.optim.AdamW(parts, lr=rate, weight_decay=0.01)
    for step in range(steps):
        chosen = draw.sample(range(len(ids)), min(len(ids), 16))
        told, written = chosen[:12], chosen[12:] or chosen[-1:]
        index = PhraseIndex(maps, [ids[at] for at in told], [states[at] for at in told])
        loss, *_ = phrase_loss(index, [ids[at] for at in written], [states[at] for at in written], lm, draw)
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * (1 - step / steps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return PhraseMaps(*(part.detach() for part in parts)), losses


def main(arguments: list[str] | None = None) -> int:
    """Train, and write maps.safetensors and losses.json."""
    parser = argparse.ArgumentParser(description="Train the maps by which phrases are chosen.")
    parser.add_argument("--model", default="stories", help="a causal model that gives its hidden states")
    parser.add_argument("--data", type=Path, required=True, help="the folder of data sets")
    parser.add_argument("--texts", type=int, default=600, help="stories that are read")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--shown", type=int, default=100, help="texts of the collections that are copied from at the end"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lm, began = load(asked.model), time.perf_counter()
    texts = list(islice(tiny_stories().read(asked.data), asked.texts))
    maps, losses = train_phrases(lm, texts, asked.steps)
    maps.save(asked.out / "maps.safetensors", asked.model)
    told = {"losses": losses, "seconds": time.perf_counter() - began, "texts": len(texts)}
    (asked.out / "losses.json").write_text(json.dumps(told), encoding="utf-8")
    print(f"loss {losses[0]:.3f} -> {sum(losses[-20:]) / len(losses[-20:]):.3f} in {told['seconds']:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
