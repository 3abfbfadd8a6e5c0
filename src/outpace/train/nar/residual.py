"""Residual glancing: what is shown at each layer is a share of what is still wrong there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.models.nar.diffused import Diffused
from outpace.models.nar.network import UNSAID
from outpace.papers import Paper

from .objectives import Objective, loss_of, shown_places

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outpace.train.pairs import PairBatch

    from .network import TrainedNar

__all__ = ["PAPERS", "ResidualGlancing", "residual_places"]

PAPERS = (
    Paper(
        "Diffusion Glancing Transformer for Parallel Sequence to Sequence Learning",
        "Qian et al.",
        2024,
        "",
        33,
        "Networks with predicted lengths, and several layers per step: each layer is one, on CTC.",
        "outpace train nar-ctc-diffused",
    ),
)


@dataclass(frozen=True, slots=True)
class ResidualGlancing(Objective):
    """Shows a part of the target below the first layer, and after each layer a part of the rest that it says wrong.

    Paper: Qian et al. (2024), DiffGLAT.

    Attributes:
        first, last: share of the places said wrong that are shown below the first layer, at the start and at the end.
        fade: what the share is multiplied by from layer to layer.
    """

    first: float = 0.5
    last: float = 0.3
    fade: float = 0.5

    def of(self, network: TrainedNar, batch: PairBatch) -> Tensor:
        """Return the loss of the second pass, over all layers.

        Raises:
            ConfigError: the network's layers do not read each other's texts.
        """
        net, run = network.net, network.begin(batch)
        if not isinstance(net, Diffused):
            raise ConfigError(f"Residual glancing cannot train a {type(net).__name__}.", "Train a `ctc-diffused`.")
        share = self.first + (self.last - self.first) * network.progress
        # 1) What is wrong below the first layer is what the whole network gets wrong; behind a layer, what it says.
        devices = [run.inputs.device] if run.inputs.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            outputs = net.finish(run)
            wanted = net.aligned(outputs, run)
            said = [found.argmax(-1) for found in (outputs[0], *run.extra["steps"])]
        # 2) Whoever was shown once stays so; each layer is shown a share of the rest.
        shown = residual_places(said, wanted, [share * self.fade**step for step in range(len(said))])
        symbols = net.embed_tokens(wanted.clamp(min=0)).to(run.inputs.dtype)
        run.inputs = torch.where(shown[0][:, :, None], symbols, run.inputs)
        run.extra.update(shown=shown[0], wanted=wanted, told=shown[1:])
        return loss_of(network, run)


def residual_places(said: Sequence[Tensor], wanted: Tensor, shares: Sequence[float]) -> list[Tensor]:
    """Return where the target is shown at each step, [B, L] bool each; every step holds those of the one before it.

    Args:
        said: per step, the symbols that are judged, [B, L] int64.
        wanted: [B, L] int64, what should be said; UNSAID = nothing.
        shares: per step, of the places still hidden and wrong there.
    """
    shown, found = torch.zeros_like(wanted, dtype=torch.bool), list[Tensor]()
    for symbols, share in zip(said, shares, strict=True):
        draws = torch.rand(wanted.shape, device=wanted.device)
        shown = shown | shown_places(symbols, wanted.masked_fill(shown, UNSAID), share, draws)
        found.append(shown)
    return found
