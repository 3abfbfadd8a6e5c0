"""ELMER: every layer has a head, and each place stops at the layer that is confident of its token.

Paper: Li et al. (2022), arXiv 2210.13304, section 3: a place that has stopped keeps its state, which the layers above
still look at (equation 4); a text ends at its first end token, no length is predicted. How it is trained:
`outpace.train.nar.permutation`; how far down places stop: the method `confident-exit`.
Differences: the heads share the table of tokens, with a norm each; places are evenly copied source states, not masks;
how many there are depends on the source's length, and all behind a text's end say the end again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from outpace.errors import ConfigError

from .network import UNSAID, NarConfig, NarNet, Pass, uniform_copy

__all__ = ["Elmer", "ElmerConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ElmerConfig(NarConfig):
    """Sizes of a network with a head after each layer.

    Attributes:
        ratio: places per source token.
        spare: places beyond that.
    """

    ratio: float = 1.25
    spare: int = 4


class Elmer(NarNet):
    """A network with a norm, and so a head, after each layer of the decoder.

    Raises:
        ConfigError: a local branch of cross-attention is asked for.
    """

    Config = ElmerConfig
    kind: ClassVar[str] = "elmer"
    own_layers: ClassVar[bool] = True

    def __init__(self, config: ElmerConfig) -> None:
        super().__init__(config)
        if config.cross_window:
            raise ConfigError("Places that stop do not go with a window of cross-attention.", "Use cross_window=0.")
        below = config.decoder_layers - 1
        self.exit_norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(below))

    def places(self, run: Pass) -> tuple[Tensor, Tensor]:
        """Copy source states evenly to as many places as the source's length asks for."""
        config = self.config
        size = (run.is_real.sum(1) * config.ratio).ceil().long() + config.spare
        return uniform_copy(run.states, run.is_real, size.clamp(max=config.max_positions))

    def finish(self, run: Pass) -> list[Tensor]:
        """Return the log-probabilities after the last layer, [B, L, V]."""
        return [self.head(self.decode(run))]

    def heard(self, state: Tensor, layer: int) -> Tensor:
        """Return the log-probabilities [..., V] of states [..., W] that left a layer, 0 the first."""
        norms = [*self.exit_norms, self.decoder_norm]
        return self.head(norms[layer](state))

    def wanted(self, run: Pass) -> Tensor:
        """Return what each place has to say, [B, L]: the target, then ends; rows that do not fit are UNSAID."""
        size = run.inputs.shape[1]
        found = run.targets.new_full((len(run.targets), size), self.config.end_token)
        held = min(size, run.targets.shape[1])
        is_token = torch.arange(held, device=found.device) < run.lengths[:, None]
        found[:, :held] = torch.where(is_token, run.targets[:, :held], found[:, :held])
        fits = run.lengths < run.is_place.sum(1)
        return found.masked_fill(~(run.is_place & fits[:, None]), UNSAID)

    def nll_of(self, laws: Tensor, run: Pass) -> Tensor:
        """Return the negative log-likelihood [B] of what places should say under laws [B, L, V]; 1e30 = no room."""
        wanted = self.wanted(run)
        said = laws.gather(2, wanted.clamp(min=0)[:, :, None])[:, :, 0]
        found = -(said * (wanted >= 0)).sum(1)
        return found.masked_fill(run.lengths >= run.is_place.sum(1), 1e30)

    def nll(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return that of the target and its ends, after the last layer."""
        return self.nll_of(outputs[0], run)

    def aligned(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return what each place has to say."""
        return self.wanted(run)

    def laws(self, outputs: Sequence[Tensor], is_place: Tensor) -> list[Tensor]:
        """Return the laws of all places of each row; the text ends at the first end."""
        return [row[held] for row, held in zip(outputs[0], is_place, strict=True)]

    def exit(self, run: Pass, threshold: float) -> tuple[Tensor, Tensor]:
        """Run the decoder, each place up to the layer whose likeliest token has a probability above a threshold.

        Returns:
            Log-probabilities [B, L, V], and how many layers each place went through, [B, L] int64, 0 = padding.
        """
        state = self.drop(run.inputs + self.place_positions.weight[: run.inputs.shape[1]])
        seen, real = run.is_place[:, None, None, :], run.is_real[:, None, None, :]
        is_on, depth = run.is_place, run.is_place.long()
        laws, last = state.new_zeros(*state.shape[:2], 1), len(self.decoder) - 1
        for layer, block in enumerate(self.decoder):
            if bool((is_on == run.is_place).all()):  # bit for bit as `finish` does it
                state = block(state, seen, run.states, real)
                laws = self.heard(state, layer) if layer == last or threshold < 1 else laws
            else:
                only, is_asked = _front(is_on)
                moved = block(state, seen, run.states, real, only)
                state = _put(state, only, is_asked, moved)
                laws[is_on] = self.heard(state[is_on], layer)
            if layer == last:
                break
            is_on = is_on & ((laws.amax(-1).exp() <= threshold) | (threshold >= 1))
            depth = depth + is_on
            if not bool(is_on.any()):
                break
        return laws, depth


def _front(is_on: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places [B, K] that are on, first in each row, and which of those count."""
    count = is_on.sum(1)
    order = is_on.long().argsort(dim=1, descending=True, stable=True)[:, : int(count.max())]
    return order, torch.arange(order.shape[1], device=order.device) < count[:, None]


def _put(state: Tensor, only: Tensor, is_asked: Tensor, moved: Tensor) -> Tensor:
    """Return states [B, L, W] with those of some places replaced by moved [B, K, W]."""
    rows, places = is_asked.nonzero(as_tuple=True)
    found = state.clone()
    found[rows, only[rows, places]] = moved[rows, places]
    return found
