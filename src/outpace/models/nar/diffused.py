"""CTC whose layers are the steps of a diffusion: each says the text, and the next one reads what was said.

Paper: Qian et al. (2024), DiffGLAT: the layers of one parallel pass take the place of denoising steps. Between them
stands a state of the text that is drawn from the target's symbols as far as these were shown, and from what the layer
itself expects elsewhere; training shows fewer of them from layer to layer (`outpace.train.nar.residual`).
Differences: on CTC, whose alignments stand for the paper's predicted lengths; a layer hands on the mean embedding under
its law in place of a drawn symbol's, which training by gradients likes better, and adds it to its own state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .ctc import Ctc, CtcConfig
from .network import Pass

__all__ = ["Diffused", "DiffusedConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusedConfig(CtcConfig):
    """Sizes of a network of steps.

    Attributes:
        step_weight: of the losses of all layers but the last, on average, beside that of the last one.
    """

    step_weight: float = 0.5


class Diffused(Ctc):
    """A CTC network that reads, after each layer but the last, what that layer says.

    `Pass.extra` may hold `wanted` [B, L] int64 and `told`, one [B, L] bool per such layer: where the next layer reads
    the wanted symbol in place of what was said. It gets `steps`, the log-probabilities [B, L, V + 1] of those layers.
    """

    Config = DiffusedConfig
    kind: ClassVar[str] = "ctc-diffused"
    own_layers: ClassVar[bool] = True
    config: DiffusedConfig

    def __init__(self, config: DiffusedConfig) -> None:
        super().__init__(config)
        self.feed = nn.Linear(config.width, config.width)

    def decode(self, run: Pass) -> Tensor:
        """Return the last states [B, L, W] of the places."""
        state = self.drop(run.inputs + self.place_positions.weight[: run.inputs.shape[1]])
        seen, real = run.is_place[:, None, None, :], run.is_real[:, None, None, :]
        run.extra["steps"] = steps = list[Tensor]()
        for index, layer in enumerate(self.decoder):
            if index:
                steps.append(self.head(self.decoder_norm(state)))
                state = state + self.feed(self._handed_on(run, index - 1))
            state = layer(state, seen, run.states, real)
        normed: Tensor = self.decoder_norm(state)
        return normed

    def _handed_on(self, run: Pass, step: int) -> Tensor:
        """Return the embeddings [B, L, W] of the text between two layers."""
        found = run.extra["steps"][step]
        expected: Tensor = found.exp().to(self.embed_tokens.weight.dtype) @ self.embed_tokens.weight
        told = run.extra.get("told")
        if told is None:
            return expected
        symbols = self.embed_tokens(run.extra["wanted"].clamp(min=0)).to(expected.dtype)
        return torch.where(told[step][:, :, None], symbols, expected)

    def nll(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Sum over all alignments to what the last layer says; see `Ctc.nll`."""
        return super().nll(outputs[:1], run)

    def loss(self, run: Pass) -> Tensor:
        """Return the loss of the last layer with those of the layers before it, weights summing to 1."""
        last = self.nll(self.finish(run), run)
        steps = run.extra["steps"]
        if not steps or not self.config.step_weight:
            return last
        before = torch.stack([super(Diffused, self).nll([step], run) for step in steps]).mean(0)
        weight = self.config.step_weight
        mixed: Tensor = (last + weight * before) / (1 + weight)
        return mixed
