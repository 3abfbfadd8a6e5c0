"""A loss that counts n-grams wherever they stand: a text shifted by a word costs nothing more.

Each n-gram of the target is laid over all windows of the places; a soft choice among the windows says which one is
meant, and the n-gram's log-likelihood there is the loss. All windows at once are a convolution of the matrix
log p(target token j | place l) with the identity as its kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.models.nar.network import Pass
from outpace.papers import Paper
from outpace.setting import check, setting

from .objectives import Objective, loss_of

if TYPE_CHECKING:
    from outpace.train.pairs import PairBatch
    from outpace.train.translation.network import PairNetwork

    from .network import TrainedNar

__all__ = ["EditInvariant", "ngram_loss"]

PAPERS = (
    Paper(
        "Don't Take It Literally: An Edit-Invariant Sequence Loss for Text Generation",
        "Liu et al.",
        2021,
        "2106.15078",
        73,
        "Style transfer with policy gradients.",
        "outpace train nar-cmlm-edit-invariant",
    ),
)
_LEAST = -20.0  # nats: what is less likely counts as this, so that one wrong place does not outweigh all windows


def ngram_loss(
    log_probs: Tensor, places: Tensor, targets: Tensor, lengths: Tensor, order: int, *, is_drawn: bool = False
) -> tuple[Tensor, Tensor]:
    """Return each row's loss in nats, the sum over its n-grams of the mean token's, [B]; and its n-grams, [B].

    Paper: Liu et al. (2021), arXiv 2106.15078, equations 6 to 8.

    Args:
        log_probs: [B, L, V].
        places: [B] int64, real places of each row.
        targets: [B, T] int64, padded.
        lengths: [B] int64 of the targets.
        order: n; rows shorter than that have no n-gram, and the loss 0.
        is_drawn: add Gumbel noise to the choice of a window, as the authors do.
    """
    said = log_probs.gather(2, targets[:, None].expand(-1, log_probs.shape[1], -1)).clamp(min=_LEAST)
    across, down = said.shape[2] - order + 1, said.shape[1] - order + 1
    if across < 1 or down < 1:
        return said.sum((1, 2)) * 0, torch.zeros_like(lengths)
    # [B, L - n + 1, T - n + 1]: a window of places by an n-gram.
    match = torch.stack([said[:, at : at + down, at : at + across] for at in range(order)]).mean(0)
    is_window = torch.arange(down, device=said.device) <= (places - order)[:, None]
    is_gram = (torch.arange(across, device=said.device) <= (lengths - order)[:, None]) & is_window.any(1, keepdim=True)
    noise = -torch.empty_like(match).exponential_().log() if is_drawn else 0.0
    choice = (match + noise).masked_fill(~is_window[:, :, None], -1e9).softmax(1)
    return -((choice * match).sum(1) * is_gram).sum(1), is_gram.sum(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EditInvariant(Objective):
    """The edit-invariant sequence loss, beside the likelihood of the target; of any network with a law at each place.

    Attributes:
        orders: of the n-grams.
        share: of this loss; the likelihood has the rest.
        is_drawn: draw the windows.
    """

    orders: tuple[int, ...] = (2, 3, 4)
    share: float = setting(0.8, least=0, most=1)
    is_drawn: bool = True

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: no order, or one below 1.
        """
        check(self)
        if not self.orders or min(self.orders) < 1:
            raise ConfigError(f"The orders of n-grams are {self.orders}.", "Give one or more, each at least 1.")

    def __call__(self, network: PairNetwork, batch: PairBatch) -> Tensor:
        """Return the loss; networks that write token by token are given their targets, as in cross-entropy."""
        if hasattr(network, "net") and hasattr(network, "begin"):
            return self.of(network, batch)  # type: ignore[arg-type]
        is_real, labels = batch.is_real, batch.labels.clamp(min=0)
        logits = network.logits(batch).float().log_softmax(-1)
        laws = logits.new_zeros(*is_real.shape, logits.shape[-1]).masked_scatter(is_real[:, :, None], logits)
        likelihood = -laws.gather(2, labels[:, :, None])[is_real].mean()
        return self.joined(likelihood, laws, is_real.sum(1), labels, is_real.sum(1))

    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the loss of one pass.

        Raises:
            ConfigError: the network has more places than there are target tokens.
        """
        run = network.begin(batch)
        outputs = network.net.finish(run)
        _check_places(run)
        likelihood = loss_of(network, run, outputs)
        return self.joined(likelihood, outputs[0], run.is_place.sum(1), run.targets, run.lengths)

    def joined(self, likelihood: Tensor, laws: Tensor, places: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
        """Return the weighted sum of the likelihood and the mean n-gram's loss."""
        losses = []
        for order in self.orders:
            found, count = ngram_loss(laws, places, targets, lengths, order, is_drawn=self.is_drawn)
            losses.append(found.sum() / count.sum().clamp(min=1))
        return (1 - self.share) * likelihood + self.share * torch.stack(losses).mean()


def _check_places(run: Pass) -> None:
    if not torch.equal(run.is_place.sum(1), run.lengths.clamp(min=1)):
        hint = "Use a kind with one place for each token, such as cmlm."
        raise ConfigError("The edit-invariant loss wants as many places as a target has tokens.", hint)
