"""Proposal heads behind a decoder: one feed-forward layer turns its last state into one state per place ahead.

Paper: Stern, Shazeer, Uszkoreit (2018), arXiv 1811.03115, section 6.1: a hidden layer, an output for each head, the
residual of the state to each of them, and the model's own output matrix. The model itself is the first head.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, HeadConfig, Lesson
from outpace.heads.slots import Options, SlotNet, at_depth, slot_lesson

__all__ = ["BlockwiseNet"]


class BlockwiseNet(SlotNet):
    """Settings: depth (heads beside the model's own), width (of the hidden layer per head; 0 = as the states)."""

    kind: ClassVar[str] = "blockwise"
    options: ClassVar[Options] = {"width": (0, 0)}

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        size, width = config.hidden_size, self.option("width") or config.hidden_size
        self.inner = nn.Linear(size, config.depth * width)
        self.outer = nn.Linear(config.depth * width, config.depth * size)
        nn.init.zeros_(self.outer.weight)  # every head begins as the model's own
        nn.init.zeros_(self.outer.bias)

    def hidden(self, states: Tensor) -> Tensor:
        """Return [..., D, hidden] of states [..., hidden]."""
        added: Tensor = self.outer(F.relu(self.inner(states)))
        return states.unsqueeze(-2) + added.view(*states.shape[:-1], self.config.depth, -1)

    def laws(self, batch: Batch) -> list[Tensor]:
        """Return per depth logits [B, T, K]."""
        return [batch.frozen.logits(x) for x in self.hidden(batch.states).unbind(-2)]

    def loss(self, batch: Batch) -> Lesson:
        """Return the heads' cross-entropies, which weigh alike (section 6.1)."""
        return slot_lesson(self.laws(batch), batch, decay=1.0)

    def slots(self, model: HeadModel, states: Tensor, token: Tensor) -> Tensor:
        """Return [B, D, hidden]."""
        del model, token
        return self.hidden(states)

    def after(self, model: HeadModel, slots: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return logits [B, N, K]; heads do not know the path."""
        del path
        return model.logits(at_depth(slots, depth))
