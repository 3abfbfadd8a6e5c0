"""Independent heads on the last hidden state, one per place ahead.

Paper: Cai et al. (2024), arXiv 2401.10774, Medusa. Head k turns the state h of the token before the last one into the
law of the token k + 2 places behind it: x = h + SiLU(W x) per block, then the target's own output matrix, or one per
head (the original files have that: hidden x vocabulary numbers each).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, Frozen, HeadConfig
from outpace.heads.slots import Options, SlotNet, at_depth, slot_lesson

__all__ = ["Block", "MedusaNet", "slot_lesson"]


class Block(nn.Module):
    """x + SiLU(W x + b); begun as the identity."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., size]."""
        return x + F.silu(self.linear(x))


class MedusaNet(SlotNet):
    """Settings: depth (heads), blocks (per head), own_output (an output matrix per head instead of the target's)."""

    kind: ClassVar[str] = "medusa"
    options: ClassVar[Options] = {"blocks": (1, 1), "own_output": (False, 0)}

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        size, blocks = config.hidden_size, self.option("blocks")
        self.has_output = bool(self.option("own_output"))
        heads = []
        for _ in range(config.depth):
            parts: list[nn.Module] = [Block(size) for _ in range(blocks)]
            if self.has_output:
                parts.append(nn.Linear(size, config.draft_vocab or config.vocab_size, bias=False))
            heads.append(nn.ModuleList(parts))
        self.heads = nn.ModuleList(heads)

    def begin(self, frozen: Frozen) -> None:
        """Let output matrices of the heads' own begin as the target's."""
        with torch.no_grad():
            for head in self.heads if self.has_output else ():
                head[-1].weight.copy_(frozen.logits(torch.eye(self.config.hidden_size)).T)  # type: ignore[index]

    def hidden(self, states: Tensor) -> Tensor:
        """Return [..., D, hidden] of states [..., hidden]."""
        found = []
        for head in self.heads:
            x = states
            for part in head:  # type: ignore[attr-defined]
                x = part(x) if isinstance(part, Block) else x
            found.append(x)
        return torch.stack(found, -2)

    def laws(self, batch: Batch) -> list[Tensor]:
        """Return per depth logits [B, T, K]."""
        outputs = [head[-1] if self.has_output else batch.frozen.logits for head in self.heads]  # type: ignore[index]
        return [output(x) for output, x in zip(outputs, self.hidden(batch.states).unbind(-2), strict=True)]

    def slots(self, model: HeadModel, states: Tensor, token: Tensor) -> Tensor:
        """Return [B, D, hidden]."""
        del model, token
        return self.hidden(states)

    def after(self, model: HeadModel, slots: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return logits [B, N, K]; heads do not know the path."""
        del path
        x = at_depth(slots, depth)
        if not self.has_output:
            return model.logits(x)
        found = x.new_zeros(*depth.shape, self.heads[0][-1].weight.shape[0])  # type: ignore[index]
        for k in depth.unique().tolist():
            found[depth == k] = self.heads[k][-1](x[depth == k])
        return found
