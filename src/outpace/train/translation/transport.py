"""Optimal transport between what is written and the reference, beside cross-entropy.

Source: Chen et al. (2019, arXiv 1901.06283): the plan comes from IPOT (Xie et al., 2018, arXiv
1802.04307). What is written is the mean embedding under each output's law, sharpened.
Differences: the outputs are those of teacher forcing, and the term between source and output is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.errors import ConfigError
from outpace.papers import Paper
from outpace.train.pairs import PairBatch

from .network import PairNetwork

__all__ = ["Transport", "cosine_costs", "ipot"]

PAPERS = (
    Paper(
        "Improving Sequence-to-Sequence Learning via Optimal Transport",
        "Chen et al.",
        2019,
        "1901.06283",
        127,
        "The term between source and output, and outputs fed back instead of the reference.",
        "outpace train captions-transport",
    ),
)


@dataclass(frozen=True, slots=True)
class Transport:
    """Cross-entropy, and the cost of moving the written embeddings onto the reference's.

    Attributes:
        weight: Of the transport (gamma); 0 = cross-entropy.
        temperature: Sharpens each output's law before its mean embedding is taken.
        step: Strength of the proximal step (beta).
        iterations: Proximal steps.
        smoothing: Of the labels in the cross-entropy.
    """

    weight: float = 0.1
    temperature: float = 0.1
    step: float = 0.5
    iterations: int = 50
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if self.weight < 0 or self.iterations < 1 or min(self.temperature, self.step) <= 0:
            raise ConfigError(
                f"There is no transport with weight {self.weight}, temperature {self.temperature}, step {self.step} "
                f"and {self.iterations} iterations.",
                "The weight is 0 or more, the others are above 0.",
            )

    def __call__(self, network: PairNetwork, batch: PairBatch) -> Tensor:
        """Return the loss in nats per target token, plus the weighted mean cost of a pair."""
        logits, is_real = network.logits(batch).float(), batch.is_real
        labels = batch.labels[is_real]
        text = F.cross_entropy(logits, labels, label_smoothing=self.smoothing)
        if not self.weight:
            return text
        table = network.table.float()
        written = _as_rows((logits / self.temperature).softmax(-1) @ table, is_real)
        costs = cosine_costs(written, _as_rows(table[labels], is_real))
        # The plan is held fixed for the gradient: at the optimum the cost's derivative is the plan itself.
        plan = ipot(costs.detach(), is_real, is_real, self.step, self.iterations)
        return text + self.weight * (plan * costs).sum((1, 2)).mean()


def cosine_costs(first: Tensor, second: Tensor) -> Tensor:
    """Return 1 - cosine between all vectors of [B, S, width] and [B, T, width]: [B, S, T]."""
    return 1 - F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).transpose(1, 2)


def ipot(costs: Tensor, is_first: Tensor, is_second: Tensor, step: float, iterations: int) -> Tensor:
    """Return plans of transport between uniform laws, [B, S, T].

    Each plan's rows sum to 1 / (number of first places), its columns to 1 / (number of second places), the rows in the
    limit; places that are not there move nothing.

    Args:
        costs: [B, S, T].
        is_first: which first places are there, bool [B, S].
        is_second: which second places are there, bool [B, T].
        step: strength of the proximal step.
        iterations: proximal steps, one scaling each.
    """
    is_there = is_first.unsqueeze(2) & is_second.unsqueeze(1)
    law_first = is_first.to(costs.dtype) / is_first.sum(1, keepdim=True)
    law_second = is_second.to(costs.dtype) / is_second.sum(1, keepdim=True)
    kernel = torch.exp(-costs / step) * is_there
    plan = is_there.to(costs.dtype)
    columns = law_second
    for _ in range(iterations):
        kernelled = kernel * plan
        rows = _over(law_first, torch.einsum("bst,bt->bs", kernelled, columns))
        columns = _over(law_second, torch.einsum("bst,bs->bt", kernelled, rows))
        plan = rows.unsqueeze(2) * kernelled * columns.unsqueeze(1)
    return plan


def _over(law: Tensor, sums: Tensor) -> Tensor:
    return torch.where(law > 0, law / sums.clamp_min(torch.finfo(sums.dtype).tiny), 0.0)


def _as_rows(vectors: Tensor, is_real: Tensor) -> Tensor:
    """Put the vectors [N, width] of the real places into [B, T, width], zero elsewhere."""
    rows = vectors.new_zeros((*is_real.shape, vectors.shape[-1]))
    rows[is_real] = vectors
    return rows
