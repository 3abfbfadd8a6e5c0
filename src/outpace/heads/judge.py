"""A linear judge of drafted tokens: from the target's state of a token, how likely it is that the token is right.

Paper: Bachmann et al. (2025), arXiv 2501.19309, Judge Decoding (section 4). It reads what the target made of the token
itself, not what it expected in its place: the state of a wrong token tells that something is to be put right.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.errors import CapabilityError
from outpace.heads.draft import HeadDrafter
from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, HeadConfig, HeadNet, Lesson
from outpace.types import Context

__all__ = ["JudgeNet"]


class JudgeNet(HeadNet):
    """One linear layer over the last hidden state; it has no settings. An unfitted one rejects everything."""

    kind: ClassVar[str] = "judge"

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.proj = nn.Linear(config.hidden_size, 1)
        nn.init.zeros_(self.proj.weight)
        nn.init.constant_(self.proj.bias, -10.0)

    @classmethod
    def made_for(
        cls, hidden_size: int, vocab_size: int, num_layers: int, target: str = "", **settings: Any
    ) -> HeadConfig:
        """Return the configuration.

        Raises:
            ConfigError: a setting was given.
        """
        settings.pop("depth", None)
        return replace(super().made_for(hidden_size, vocab_size, num_layers, target, **settings), depth=1)

    def right(self, states: Tensor) -> Tensor:
        """Return how likely tokens are right, [...], from the target's states of them [..., hidden]."""
        return self.proj(states.to(self.proj.weight.dtype)).squeeze(-1).sigmoid()  # type: ignore[no-any-return]

    def fit(self, states: Tensor, is_right: Tensor, decay: float = 1e-3, steps: int = 200) -> None:
        """Fit to states [N, hidden] of tokens of which it is known whether they are right, [N] bool.

        Both classes weigh alike, however many there are of each.

        Args:
            states, is_right: the examples; some of either class.
            decay: of the weights, times their squares' mean.
            steps: most iterations of L-BFGS.
        """
        share = is_right.double().mean().clamp(1e-3, 1 - 1e-3)
        weight = torch.where(is_right, 0.5 / share, 0.5 / (1 - share))
        mean, scale = states.double().mean(0), states.double().std(0).clamp(min=1e-6)
        x, goal = (states.double() - mean) / scale, is_right.double()
        line, shift = torch.zeros(x.shape[1], dtype=x.dtype), torch.zeros((), dtype=x.dtype)
        for free in (line, shift):
            free.requires_grad_(True)
        optimiser = torch.optim.LBFGS([line, shift], max_iter=steps, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = F.binary_cross_entropy_with_logits(x @ line + shift, goal, weight) + decay * line.square().sum()
            loss.backward()
            return loss

        optimiser.step(closure)
        with torch.no_grad():
            self.proj.weight.copy_((line / scale).unsqueeze(0))
            self.proj.bias.copy_((shift - (line * mean / scale).sum()).unsqueeze(0))

    def loss(self, batch: Batch) -> Lesson:
        """Refuse: texts that the target wrote hold no wrong tokens."""
        raise CapabilityError("A judge learns from wrong tokens too.", "Use outpace.train.judge.train_judge.")

    def new_drafter(self, model: HeadModel, context: Context) -> HeadDrafter:
        """Refuse: it judges what others draft."""
        raise CapabilityError("A judge does not draft.", "Name a drafter, and this with -o judge=DIRECTORY.")
