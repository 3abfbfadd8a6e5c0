"""Aligned cross-entropy: the target is laid along the places in order, and only what is said there counts.

Paper: Ghazvininejad et al. (2020), "Aligned cross entropy for non-autoregressive machine translation", arXiv
2004.01655, equations 2 to 5 and algorithm 1. A target token takes a place of its own, a place says nothing (the blank),
or a target token is passed over at a price. The cost is that of the best way, so its gradient is too.
Differences: one column of the dynamic program is a running minimum, so that the steps are the places alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.papers import Paper
from outpace.setting import check, setting

from .objectives import Objective, mean_of

if TYPE_CHECKING:
    from outpace.train.pairs import PairBatch

    from .network import TrainedNar

__all__ = ["AlignedCrossEntropy", "aligned_cost"]


PAPERS = (
    Paper(
        "Aligned Cross Entropy for Non-Autoregressive Machine Translation",
        "Ghazvininejad et al.",
        2020,
        "2004.01655",
        None,
        "Masks over a part of the target.",
        "outpace train nar-ctc-aligned",
    ),
)


def aligned_cost(
    log_probs: Tensor, places: Tensor, targets: Tensor, lengths: Tensor, blank: int, price: float
) -> Tensor:
    """Return the cost in nats of each row's best alignment, [B].

    Args:
        log_probs: [B, L, V], V with the blank.
        places: [B] int64, real places of each row, at least 1.
        targets: [B, T] int64, padded.
        lengths: [B] int64 of the targets.
        blank: its symbol.
        price: factor on the cost of a target token that has no place of its own.
    """
    said = -log_probs.gather(2, targets[:, None].expand(-1, log_probs.shape[1], -1))
    silent = -log_probs[:, :, blank]
    # cost[:, i]: of the first i target tokens along the places so far; before any, tokens are passed over at the first.
    none = said.new_zeros(len(said), 1)
    cost = torch.cat([none, (price * said[:, 0]).cumsum(1)], 1)
    for at in range(log_probs.shape[1]):
        skipped = torch.cat([none, (price * said[:, at]).cumsum(1)], 1)
        best = cost + silent[:, at, None]
        best = torch.cat([best[:, :1], torch.minimum(best[:, 1:], cost[:, :-1] + said[:, at])], 1)
        # min over k <= i of best[k] + skipped[i] - skipped[k]: what comes before the tokens that are passed over here.
        best = skipped + (best - skipped).cummin(1).values
        cost = torch.where((at < places)[:, None], best, cost)
    return cost.gather(1, lengths[:, None])[:, 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedCrossEntropy(Objective):
    """The cost of the best alignment; of kinds with a blank.

    Attributes:
        price: of a target token that is passed over, as a factor.
    """

    price: float = setting(1.0, above=0)

    def __post_init__(self) -> None:
        """Check the settings."""
        check(self)

    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the loss of one pass.

        Raises:
            ConfigError: the kind has no blank.
        """
        net = network.net
        if net.extra_symbols < 1:
            raise ConfigError(f"A {type(net).__name__} has no blank.", "Use a kind with one, such as ctc.")
        run = network.begin(batch)
        laws, places = net.finish(run)[0], run.is_place.sum(1)
        return mean_of(aligned_cost(laws, places, run.targets, run.lengths, net.config.vocab_size, self.price), run)
