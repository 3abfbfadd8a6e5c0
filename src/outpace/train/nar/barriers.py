"""Training of Markov transformers: attention that random barriers cut short."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor

from outpace.models.nar.markov import Markov

from .objectives import Objective, mean_of

if TYPE_CHECKING:
    from outpace.train.pairs import PairBatch

    from .network import TrainedNar

__all__ = ["Barriers"]


@dataclass(frozen=True, slots=True)
class Barriers(Objective):
    """The likelihood of the target behind barriers drawn anew for each text, and that of its length.

    Paper: Deng and Rush (2020), arXiv 2006.01112, section 4.

    Attributes:
        length: weight of the length's loss, which is a mean over texts.
    """

    length: float = 0.1

    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the loss in nats per target token."""
        net, run = cast("Markov", network.net), network.begin(batch)
        told = mean_of(net.nll(net.finish(run), run), run)
        return told + self.length * net.lengths.nll(run.extra["length law"], run).mean()
