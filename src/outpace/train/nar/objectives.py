"""What a one-pass network is trained for. An objective is a frozen dataclass; a recipe names it as its criterion.

The share of the training that is done stands in `network.progress`, from 0 to 1, for schedules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from outpace.models.nar.network import UNSAID, Pass
from outpace.papers import Paper

if TYPE_CHECKING:
    from outpace.train.pairs import PairBatch, PairBatches
    from outpace.train.translation.network import PairNetwork

    from .network import TrainedNar

__all__ = ["PAPERS", "Glancing", "Likelihood", "Objective", "Unreached", "loss_of", "mean_of", "shown_places"]

PAPERS = (
    Paper(
        "Glancing Transformer for Non-Autoregressive Neural Machine Translation",
        "Qian et al.",
        2021,
        "2008.07905",
        11,
        "",
        "outpace train nar-ctc-glancing",
    ),
)

LOST = 1e20  # nats from which on a target cannot be reached at all


class Objective(ABC):
    """Base of all objectives.

    Attributes:
        wants_raw: it learns something from the pairs as people wrote them before the training begins (`prepared`).
    """

    wants_raw: ClassVar[bool] = False

    def prepared(self, raw: PairBatches) -> Objective:
        """Return the objective as it is used, given the encoded pairs of the recipe's source."""
        del raw
        return self

    def __call__(self, network: PairNetwork, batch: PairBatch) -> Tensor:
        """Return the loss; see `Criterion`."""
        return self.of(network, batch)  # type: ignore[arg-type]

    @abstractmethod
    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the loss in nats per target token, a scalar."""


def mean_of(losses: Tensor, run: Pass) -> Tensor:
    """Return the mean per target token of losses [B]; targets that no alignment reaches are left out."""
    is_reached = ~(losses >= LOST)  # so that NaN counts, and stops the training
    return torch.where(is_reached, losses, 0.0).sum() / (run.lengths * is_reached).sum().clamp(min=1)


def loss_of(network: TrainedNar, run: Pass, outputs: Sequence[Tensor] | None = None) -> Tensor:
    """Return the mean per target token of the network's losses on a batch; what is left out is counted.

    Args:
        network: the network.
        run: the batch.
        outputs: what the pass gave (`NarNet.finish`), where it was made already.
    """
    losses = network.net.loss(run) if outputs is None else network.net.nll(outputs, run)
    network.unreached.count(losses.detach() >= LOST, run)
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

    Paper: Qian et al. (2021), arXiv 2008.07905 (GLAT), equations 5 to 8. Of CTC and graphs the symbols on the likeliest
    alignment are shown, as the authors' code and Huang et al. (2022), arXiv 2205.07459, do.

    Attributes:
        first, last: share of the places said wrong in the first pass that are shown, at the start and at the end.
    """

    first: float = 0.5
    last: float = 0.3

    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the loss of the second pass.

        A kind whose loss is a sum over places asks for those alone that were not shown, `run.extra["shown"]` [B, L]
        (equation 6); a sum over alignments has no such part, and counts as it is.
        """
        net, run = network.net, network.begin(batch)
        draws = torch.rand(run.is_place.shape, device=run.is_place.device)
        share = self.first + (self.last - self.first) * network.progress
        # 1) The first pass says how much is still wrong, with the dropout that the second one will have.
        devices = [run.inputs.device] if run.inputs.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            wanted, said = net.glance(run)
        # 2) So many symbols of the target, by chance, are shown at their places.
        run.extra["shown"] = shown = shown_places(said, wanted, share, draws)
        symbols = net.embed_tokens(wanted.clamp(min=0)).to(run.inputs.dtype)
        run.inputs = torch.where(shown[:, :, None], symbols, run.inputs)
        return loss_of(network, run)


def shown_places(said: Tensor, wanted: Tensor, share: float, draws: Tensor) -> Tensor:
    """Return where the target is shown, [B, L] bool: as many places as a share of the Hamming distance, rounded down.

    Args:
        said: [B, L] int64, the first pass's likeliest symbols.
        wanted: [B, L] int64, what should be said; UNSAID = the target says nothing about a place.
        share: of the places said wrong.
        draws: [B, L], equally likely in any order; they decide which places.
    """
    is_said = wanted != UNSAID
    number = ((is_said & (said != wanted)).sum(1) * share).floor()
    rank = draws.masked_fill(~is_said, 2.0).argsort(1).argsort(1)
    return is_said & (rank < number[:, None])
