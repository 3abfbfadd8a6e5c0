"""Layer-permutation language modelling: each token is learned after a layer drawn for it, as if it had exited there.

Paper: Li et al. (2022), arXiv 2210.13304 (ELMER), section 3.3, equation 6.
Differences: a share of the targets is learned after the last layer throughout, `full`, for that is how threshold 1
decodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.models.nar.elmer import Elmer
from outpace.models.nar.network import Pass

from .objectives import LOST, Objective, mean_of

if TYPE_CHECKING:
    from outpace.train.pairs import PairBatch

    from .network import TrainedNar

__all__ = ["LayerPermutation"]


@dataclass(frozen=True, slots=True)
class LayerPermutation(Objective):
    """The likelihood of the target where every place leaves after a layer drawn by chance.

    Attributes:
        full: share of the rows all of whose places go through all layers.
    """

    full: float = 0.25

    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the loss of one pass with drawn exits.

        Raises:
            ConfigError: the network has no heads between its layers.
        """
        net = network.net
        if not isinstance(net, Elmer):
            raise ConfigError("Exits are drawn for a network of the kind elmer.", "Use another criterion.")
        run = network.begin(batch)
        layers = len(net.decoder)
        exits = torch.randint(1, layers + 1, run.is_place.shape, device=run.is_place.device)
        is_full = torch.rand(len(exits), 1, device=exits.device) < self.full
        losses = net.nll_of(laws_at(net, run, exits.masked_fill(is_full, layers)), run)
        network.unreached.count(losses.detach() >= LOST, run)
        return mean_of(losses, run)


def laws_at(net: Elmer, run: Pass, exits: Tensor) -> Tensor:
    """Return the log-probabilities [B, L, V] of places that leave after given layers, [B, L] int64 from 1.

    A place that has left keeps its state, which the others go on looking at.
    """
    state = net.drop(run.inputs + net.place_positions.weight[: run.inputs.shape[1]])
    seen, real = run.is_place[:, None, None, :], run.is_real[:, None, None, :]
    heard = torch.zeros_like(state)
    norms = [*net.exit_norms, net.decoder_norm]
    for layer, block in enumerate(net.decoder, 1):
        moved = block(state, seen, run.states, real)
        state = torch.where((exits >= layer)[:, :, None], moved, state)
        heard = torch.where((exits == layer)[:, :, None], norms[layer - 1](state).to(heard.dtype), heard)
    return net.head(heard)
