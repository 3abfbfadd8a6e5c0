"""Loss smoothing: what is learnt is not the one reference, but a law around it that decays with a reward.

Source: Elbayad, Besacier and Verbeek (2018, arXiv 1805.05062), over reward augmented maximum likelihood (Norouzi et
al., 2016, arXiv 1609.00150): minimise the expected -log p(y) under a law proportional to exp(reward / temperature). At
temperature 0 the law is the reference alone, and the loss is cross-entropy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.errors import ConfigError
from outpace.papers import Paper
from outpace.train.data import EOS_ID
from outpace.train.pairs import IGNORED, START_ID, PairBatch

from .network import PairNetwork

__all__ = ["SequenceSmoothing", "TokenSmoothing", "edited", "keep_probability", "reward_law", "sequence_loss"]

PAPERS = (
    Paper(
        "Token-level and sequence-level loss smoothing for RNN language models",
        "Elbayad et al.",
        2018,
        "1805.05062",
        105,
        "BLEU and CIDEr as rewards, embeddings made elsewhere, and promoting rare words.",
        "outpace train captions-token-smoothing",
    ),
)


@dataclass(frozen=True, slots=True)
class TokenSmoothing:
    """Each label is a law over the vocabulary: tokens with similar embeddings get a share.

    Attributes:
        temperature: Of the law; 0 = cross-entropy.
        share: Weight of the smoothed loss beside cross-entropy (alpha).
    """

    temperature: float = 0.1
    share: float = 0.5

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        _check(self.temperature, self.share)

    def __call__(self, network: PairNetwork, batch: PairBatch) -> Tensor:
        """Return the loss in nats per target token."""
        logprobs = network.logits(batch).float().log_softmax(-1)
        labels = batch.labels[batch.is_real]
        exact = F.nll_loss(logprobs, labels)
        if not self.temperature:
            return exact
        law = reward_law(cosine_rewards(network.table.detach().float(), labels), self.temperature)
        return (1 - self.share) * exact - self.share * (law * logprobs).sum(-1).mean()


def cosine_rewards(table: Tensor, labels: Tensor) -> Tensor:
    """Return the cosine of each label's embedding with all of `table` [V, width]: [N, V]."""
    table = F.normalize(table, dim=-1)
    return table[labels] @ table.T


def reward_law(rewards: Tensor, temperature: float) -> Tensor:
    """Return the law proportional to exp(reward / temperature) along the last axis."""
    return (rewards / temperature).softmax(-1)


@dataclass(frozen=True, slots=True)
class SequenceSmoothing:
    """Other targets are drawn around the reference, and learnt beside it.

    Draws follow the exponential law of the Hamming distance, which is a product over places: each token is kept, or
    replaced by one of the others. The end is kept, so lengths are.

    Attributes:
        temperature: Of the law; 0 = cross-entropy.
        share: Weight of the smoothed loss beside cross-entropy (alpha).
        draws: Targets drawn for each reference.
        is_lazy: Read the reference's prefix, not the drawn one's: one forward for all draws.
    """

    temperature: float = 0.1
    share: float = 0.5
    draws: int = 1
    is_lazy: bool = False

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        _check(self.temperature, self.share)
        if self.draws < 1:
            raise ConfigError(f"Sequence smoothing cannot draw {self.draws} targets.", "Ask for 1 or more.")

    def __call__(self, network: PairNetwork, batch: PairBatch) -> Tensor:
        """Return the loss in nats per target token."""
        logits = network.logits(batch).float()
        exact = F.cross_entropy(logits, batch.labels[batch.is_real])
        if not self.temperature:
            return exact
        kept = keep_probability(logits.shape[-1], self.temperature)
        drawn = [edited(batch.labels, kept, logits.shape[-1]) for _ in range(self.draws)]
        smoothed = sequence_loss(network, batch, drawn, logits if self.is_lazy else None)
        return (1 - self.share) * exact + self.share * smoothed


def keep_probability(vocab: int, temperature: float) -> float:
    """Return how likely a token of the reference stays under exp(-distance / temperature): the same at each place.

    The sum over all sequences of one length is (1 + (V - 1) exp(-1 / temperature)) ** length, a product over places.
    """
    return 1 / (1 + (vocab - 1) * math.exp(-1 / temperature))


def edited(labels: Tensor, kept: float, vocab: int) -> Tensor:
    """Return labels [B, T] of which each token but the end stays with probability `kept`, else is any other one."""
    can_change = (labels != IGNORED) & (labels != EOS_ID)
    changes = can_change & (torch.rand(labels.shape, device=labels.device) >= kept)
    others = torch.randint(0, vocab - 1, labels.shape, device=labels.device)
    return torch.where(changes, others + (others >= labels), labels)


def sequence_loss(
    network: PairNetwork, batch: PairBatch, drawn: Sequence[Tensor], logits: Tensor | None = None
) -> Tensor:
    """Return the mean -log probability of drawn targets, in nats per target token.

    Args:
        network: what is trained.
        batch: sources and references.
        drawn: other labels, [B, T] each.
        logits: of the reference's prefixes, [N, V]: used for every draw (lazy); None = each reads its own prefix.
    """
    total = torch.zeros((), device=batch.labels.device)
    for labels in drawn:
        says = network.logits(_with_targets(batch, labels)).float() if logits is None else logits
        total = total + F.cross_entropy(says, labels[batch.is_real])
    return total / len(drawn)


def _with_targets(batch: PairBatch, labels: Tensor) -> PairBatch:
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = START_ID
    return batch._replace(inputs=torch.where(shifted == IGNORED, EOS_ID, shifted), labels=labels)


def _check(temperature: float, share: float) -> None:
    if temperature < 0 or not 0 <= share <= 1:
        raise ConfigError(
            f"A loss cannot be smoothed at temperature {temperature} with a share of {share}.",
            "The temperature is 0 or more, the share from 0 to 1.",
        )
