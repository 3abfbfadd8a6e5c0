"""What the lessons of feature drafters have in common: places moved by a pass, soft losses, and counted guesses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from outpace.heads.net import Batch, Lesson, shifted

__all__ = ["Tally", "moved", "soft_loss"]


def moved(values: Tensor, by: int = 1) -> Tensor:
    """Return values [B, T, ...] `by` places further on; zeros come in."""
    return F.pad(values, (*[0, 0] * (values.dim() - 2), by, 0))[:, : values.shape[1]]


def soft_loss(logits: Tensor, law: Tensor, weight: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of logits [B, T, K] against laws [B, T, K] where weight [B, T] is 1."""
    nats = -(law * logits.log_softmax(-1)).sum(-1)
    return (nats * weight).sum() / weight.sum().clamp(min=1)


class Tally:
    """Counts what a lesson comes to. Entry t is the token t + 1 beside the feature of t; it tells the token t + 2.

    Args:
        batch: the texts.
        ahead: places from the token of an entry to the one that it tells.
    """

    def __init__(self, batch: Batch, ahead: int = 1) -> None:
        token, is_there = shifted(batch.tokens, 1 + ahead)
        taught, _ = shifted(batch.is_taught.long(), 1 + ahead)
        ids = batch.frozen.ids
        self.counted = (is_there & (taught > 0))[:, :-1]
        label = token if ids is None else torch.searchsorted(ids, token).clamp(max=len(ids) - 1)
        is_known = torch.ones_like(label, dtype=torch.bool) if ids is None else ids[label] == token
        self.label, self.is_known = label[:, :-1], is_known[:, :-1]
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.counts: list[Tensor] = []
        self.reached: list[Tensor] = []
        self._alive = self.counted

    def weight(self, first: int) -> Tensor:
        """Return [B, T] float, 1 where an entry is taught and at least `first` places from the beginning."""
        weight = self.counted.float()
        return torch.cat([torch.zeros_like(weight[:, :first]), weight[:, first:]], 1)

    def add(self, loss: Tensor) -> None:
        """Take in a part of the loss."""
        self.losses.append(loss)

    def count(self, step: int, logits: Tensor) -> None:
        """Count the guesses [B, T, K] of a pass: those of pass j were drafted from j places before."""
        counted = self.weight(step) > 0
        right = (logits.argmax(-1) == self.label) & self.is_known & counted
        self._alive = right if step == 0 else right & moved(self._alive.unsqueeze(-1)).squeeze(-1)
        self.hits.append(right.sum().float())
        self.counts.append(counted.sum().float())
        self.reached.append(self._alive.sum().float())

    def count_blocks(self, step: int, logits: Tensor, block: int, offset: int) -> None:
        """Count the guesses [B, T, K] of a pass over blocks: entry i of a block is drafted i places behind its first.

        Args:
            step: the pass; each goes on from the blocks before it.
            logits: of all entries.
            block: entries of a block.
            offset: entries before the first block.
        """
        counted = self.weight(offset + step * block) > 0
        right = (logits.argmax(-1) == self.label) & self.is_known & counted
        end = offset + (right.shape[1] - offset) // block * block
        right, counted = (x[:, offset:end].unflatten(1, (-1, block)) for x in (right, counted))
        alive = right.cumprod(-1).bool()
        if step:
            alive &= moved(self._alive.unsqueeze(-1))
        self._alive = alive[..., -1]
        for values, held in ((right, self.hits), (counted, self.counts), (alive, self.reached)):
            held.extend(values.sum((0, 1)).float())

    def lesson(self) -> Lesson:
        """Return the mean of the parts, and the counts."""
        loss = torch.stack(self.losses).mean()
        return Lesson(loss, torch.stack(self.hits), torch.stack(self.counts), torch.stack(self.reached))
