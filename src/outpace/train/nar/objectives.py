"""What a one-pass network is trained for. An objective is a frozen dataclass; a recipe names it as its criterion.

The share of the training that is done stands in `network.progress`, from 0 to 1, for schedules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outpace.models.nar.network import Pass

if TYPE_CHECKING:
    from outpace.train.pairs import PairBatch
    from outpace.train.translation.network import PairNetwork

    from .network import TrainedNar

__all__ = ["Glancing", "Likelihood", "Objective", "Unreached", "loss_of", "mean_of"]

_LOST = 1e20  # nats from which on a target cannot be reached at all


class Objective(ABC):
    """Base of all objectives."""

    def __call__(self, network: PairNetwork, batch: PairBatch) -> Tensor:
        """Return the loss; see `Criterion`."""
        return self.of(network, batch)  # type: ignore[arg-type]

    @abstractmethod
    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the loss in nats per target token, a scalar."""


def mean_of(losses: Tensor, run: Pass) -> Tensor:
    """Return the mean per target token of losses [B]; targets that no alignment reaches are left out."""
    is_reached = ~(losses >= _LOST)  # so that NaN counts, and stops the training
    return torch.where(is_reached, losses, 0.0).sum() / (run.lengths * is_reached).sum().clamp(min=1)


def loss_of(network: TrainedNar, run: Pass) -> Tensor:
    """Return the mean per target token of the network's losses on a batch; what is left out is counted."""
    losses = network.net.loss(run)
    network.unreached.count(losses.detach() >= _LOST, run)
    return mean_of(losses, run)


@dataclass(slots=True)
class Unreached:
    """Targets that no alignment reached, since the last report.

    Attributes:
        number: of them.
        tokens, places: of the one that lacked most places.
    """

    number: int = 0
    tokens: int = 0
    places: int = 0

    def count(self, is_lost: Tensor, run: Pass) -> None:
        """Take in which rows of a batch were not reached, [B] bool."""
        pairs = torch.stack([run.lengths, run.is_place.sum(1)], 1)[is_lost].tolist()
        self.number += len(pairs)
        worst = max([[self.tokens, self.places], *pairs], key=lambda pair: pair[0] - pair[1] if pair[0] else -(10**9))
        self.tokens, self.places = worst

    def report(self) -> list[str]:
        """Return a sentence on them, if there were any, and begin anew."""
        number, tokens, places = self.number, self.tokens, self.places
        self.number = self.tokens = self.places = 0
        if not number:
            return []
        return [
            f"targets left out since the last checkpoint: {number}, which their places do not reach, such as one of "
            f"{tokens} tokens with {places} places"
        ]


@dataclass(frozen=True, slots=True)
class Likelihood(Objective):
    """The likelihood of the target, as the network's kind defines it."""

    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the loss of one pass."""
        run = network.begin(batch)
        return loss_of(network, run)


@dataclass(frozen=True, slots=True)
class Glancing(Objective):
    """A first pass tells how much of the target is shown to the second one.

    Paper: Qian et al. (2021), arXiv 2008.07905 (GLAT), equations 6 to 8; of CTC and graphs the symbols on the likeliest
    alignment are shown, as in Huang et al. (2022), arXiv 2205.07459.

    Attributes:
        first, last: share of the places said wrong in the first pass that are shown, at the start and at the end.
    """

    first: float = 0.5
    last: float = 0.3

    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the loss of the second pass."""
        net = network.net
        run = network.begin(batch)
        # 1) The first pass says how much is still wrong.
        with torch.no_grad():
            outputs = net.finish(run)
            wanted = net.aligned(outputs, run)
            is_said = wanted >= 0
            is_wrong = is_said & (outputs[0].argmax(-1) != wanted)
            share = self.first + (self.last - self.first) * network.progress
            shown = (is_wrong.sum(1) * share).floor() / is_said.sum(1).clamp(min=1)
        # 2) So many symbols, by chance, are shown at their places.
        is_shown = is_said & (torch.rand(wanted.shape, device=wanted.device) < shown[:, None])
        symbols = net.embed_tokens(wanted.clamp(min=0))
        run.inputs = torch.where(is_shown[:, :, None], symbols.to(run.inputs.dtype), run.inputs)
        return loss_of(network, run)
