"""A look at held-out pairs while a network trains: cross-entropy and BLEU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from outpace.train.bleu import bleu
from outpace.train.pairs import Pair, encode_pairs, make_batch

from .criteria import CrossEntropy
from .network import PairNetwork

__all__ = ["HeldOut", "draw_curves", "evaluating", "translate_all", "write_all"]

ROWS = 64


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Pairs that are not trained on.

    Attributes:
        pairs: Source and target.
        tokenizer: Of both.
        budget: Positions of a batch.
    """

    pairs: Sequence[Pair]
    tokenizer: Tokenizer
    budget: int = 4096

    def look(self, network: PairNetwork, device: torch.device) -> dict[str, float]:
        """Return `held_out`, the cross-entropy in nats per token, and `bleu`, of greedy translations."""
        return {
            "held_out": self.cross_entropy(network, device),
            "bleu": bleu(translate_all(network, self.tokenizer, [a for a, _ in self.pairs], device), self.targets),
        }

    @property
    def targets(self) -> list[str]:
        """The targets as texts."""
        return [target for _, target in self.pairs]

    @torch.no_grad()
    def cross_entropy(self, network: PairNetwork, device: torch.device) -> float:
        """Return the cross-entropy of the targets, in nats per token; of a network without logits, its own loss."""
        batches = encode_pairs(self.tokenizer, self.pairs, self.budget, longest=1_000_000, seed=0)
        total = count = 0.0
        with evaluating(network, device):
            for step in range(batches.steps_per_epoch):
                batch = batches.batch(step).to(device)
                size = float(batch.is_real.sum())
                total, count = total + size * float(network.loss(batch, CrossEntropy())), count + size
        return total / count


@contextmanager
def evaluating(network: PairNetwork, device: torch.device) -> Iterator[None]:
    """Without dropout, with products in bfloat16 as in the steps."""
    was_training = network.training
    network.eval()
    try:
        with torch.autocast(device.type, torch.bfloat16):
            yield
    finally:
        network.train(was_training)


def write_all(
    network: PairNetwork, tokenizer: Tokenizer, texts: Sequence[str], device: torch.device, most: int = 96
) -> list[list[int]]:
    """Translate texts greedily, similar lengths together, and return the tokens of each, its end left out."""
    sources = [np.array(encoding.ids, dtype=np.int64) for encoding in tokenizer.encode_batch(list(texts))]
    order = sorted(range(len(texts)), key=lambda index: len(sources[index]))
    found: dict[int, list[int]] = {}
    with evaluating(network, device):
        write = network.writer()
        for start in range(0, len(order), ROWS):
            part = order[start : start + ROWS]
            rows = [sources[index] for index in part]
            batch = make_batch(rows, rows).to(device)
            found.update(zip(part, write(batch.sources, batch.mask, most), strict=True))
    return [found[index] for index in range(len(texts))]


def translate_all(
    network: PairNetwork, tokenizer: Tokenizer, texts: Sequence[str], device: torch.device, most: int = 96
) -> list[str]:
    """Translate texts greedily and return the translations."""
    decoded: list[str] = tokenizer.decode_batch(write_all(network, tokenizer, texts, device, most))
    return decoded


def draw_curves(looks: Sequence[dict[str, float]], title: str, path: Path) -> bool:
    """Draw losses and BLEU along the steps; return False where there is nothing to draw with or to draw."""
    if len(looks) < 2:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7.6, 3.2), dpi=100, layout="constrained")
    loss, quality = figure.subplots(1, 2)
    steps = [look["step"] for look in looks]
    loss.plot(steps, [look["held_out"] for look in looks], color="#1b6ca8", label="held out")
    loss.plot(steps, [look["loss"] for look in looks], color="#999999", label="trained on")
    loss.set(xlabel="step", ylabel="loss (nats per token)")
    loss.legend(fontsize=8)
    quality.plot(steps, [look["bleu"] for look in looks], color="#3a8f5c")
    quality.set(xlabel="step", ylabel="BLEU, held out")
    for axes in (loss, quality):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path)
    return True
