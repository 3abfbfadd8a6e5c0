"""Cross-entropy of the targets, with labels smoothed over the vocabulary, or taught by a parent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.train.objectives import TEACHER_SHARE
from outpace.train.pairs import PairBatch

from .network import PairNetwork

__all__ = ["CrossEntropy", "Taught"]


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Mean cross-entropy of the target's tokens.

    Attributes:
        smoothing: Share of each label that is spread evenly over the vocabulary (Szegedy et al., 2016). It helps greedy
            text and harms sampled text: at temperature 1 a model so trained writes a random token about as often.
    """

    smoothing: float = 0.0

    def __call__(self, network: PairNetwork, batch: PairBatch) -> Tensor:
        """Return the loss in nats per target token."""
        logits = network.logits(batch).float()
        return F.cross_entropy(logits, batch.labels[batch.is_real], label_smoothing=self.smoothing)


@dataclass(frozen=True, slots=True)
class Taught:
    """The parent's laws over the next token, and a little of the text itself (Kim and Rush, 2016, section 3.1).

    Attributes:
        teacher: The parent's network.
        smoothing: Share of each of the text's labels that is spread evenly over the vocabulary.
        share: Weight of the parent.
    """

    teacher: PairNetwork
    smoothing: float = 0.0
    share: float = TEACHER_SHARE

    def __call__(self, network: PairNetwork, batch: PairBatch) -> Tensor:
        """Return the loss in nats per target token."""
        with torch.no_grad():
            law = self.teacher.logits(batch).float().softmax(-1)
        logits = network.logits(batch).float()
        text = F.cross_entropy(logits, batch.labels[batch.is_real], label_smoothing=self.smoothing)
        return self.share * F.cross_entropy(logits, law) + (1 - self.share) * text
