"""Independent heads on the last hidden state, one per place ahead.

Paper: Cai et al. (2024), arXiv 2401.10774, Medusa. Head k turns the state h of the token before the last one into the
law of the token k + 2 places behind it: x = h + SiLU(W x) per block, then the target's own output matrix, or one per
head (the original files have that: hidden x vocabulary numbers each).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.errors import ConfigError
from outpace.heads.draft import HeadDrafter, SlotDrafter
from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, Frozen, HeadConfig, HeadNet, Lesson, shifted
from outpace.types import Context

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


class MedusaNet(HeadNet):
    """Settings: depth (heads), blocks (per head), own_output (an output matrix per head instead of the target's)."""

    kind: ClassVar[str] = "medusa"

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        size, blocks = config.hidden_size, int(config.settings.get("blocks", 1))
        heads = []
        for _ in range(config.depth):
            parts: list[nn.Module] = [Block(size) for _ in range(blocks)]
            if config.settings.get("own_output"):
                parts.append(nn.Linear(size, config.draft_vocab or config.vocab_size, bias=False))
            heads.append(nn.ModuleList(parts))
        self.heads = nn.ModuleList(heads)

    @classmethod
    def made_for(
        cls, hidden_size: int, vocab_size: int, num_layers: int, target: str = "", **settings: Any
    ) -> HeadConfig:
        """Return the configuration; see the class for its settings."""
        own = {"blocks": int(settings.pop("blocks", 1)), "own_output": bool(settings.pop("own_output", False))}
        if own["blocks"] < 1:
            raise ConfigError(f"blocks is {own['blocks']}.", "Use 1 or more.")
        base = super().made_for(hidden_size, vocab_size, num_layers, target, **settings)
        return HeadConfig(**{**base.to_dict(), "layers": (), "settings": own})

    def begin(self, frozen: Frozen) -> None:
        """Let output matrices of the heads' own begin as the target's."""
        if not self.config.settings.get("own_output"):
            return
        with torch.no_grad():
            eye = torch.eye(self.config.hidden_size)
            for head in self.heads:
                head[-1].weight.copy_(frozen.logits(eye).T)  # type: ignore[index]

    def hidden(self, states: Tensor) -> Tensor:
        """Return [..., D, hidden] of states [..., hidden]."""
        found = []
        for head in self.heads:
            x = states
            for part in head:  # type: ignore[attr-defined]
                x = part(x) if isinstance(part, Block) else x
            found.append(x)
        return torch.stack(found, -2)

    def loss(self, batch: Batch) -> Lesson:
        """Mean cross-entropy of each head against the text, head k weighted by 0.8 to the k (the paper's)."""
        x = self.hidden(batch.states)
        own = bool(self.config.settings.get("own_output"))
        logits = [
            self.heads[k][-1](x[..., k, :]) if own else batch.frozen.logits(x[..., k, :])  # type: ignore[index]
            for k in range(self.config.depth)
        ]
        return slot_lesson(logits, batch)

    def new_drafter(self, model: HeadModel, context: Context) -> HeadDrafter:
        """Return a drafter from laws of places ahead."""
        return SlotDrafter.begin_with(model, context)

    def slots(self, model: HeadModel, states: Tensor, token: Tensor) -> Tensor:
        """Return [B, D, hidden]."""
        del model, token
        return self.hidden(states)

    def after(self, model: HeadModel, slots: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return logits [B, N, K]; heads do not know the path."""
        del path
        x = slots.gather(1, depth.unsqueeze(-1).expand(-1, -1, slots.shape[-1]))
        if not self.config.settings.get("own_output"):
            return model.logits(x)
        tables = torch.stack([head[-1].weight for head in self.heads])  # type: ignore[index]
        return torch.einsum("bnh,bnvh->bnv", x, tables[depth])


def slot_lesson(logits: list[Tensor], batch: Batch, decay: float = 0.8) -> Lesson:
    """Return the lesson of laws of places ahead.

    Args:
        logits: per depth k, [B, T, K]: at place t, of the token at t + 2 + k.
        batch: the texts.
        decay: weight of a depth over that of the one before it.
    """
    losses, hits, counts, reached = [], [], [], []
    alive = None
    ids = batch.frozen.ids
    for k, one in enumerate(logits):
        token, is_there = shifted(batch.tokens, k + 2)
        taught, _ = shifted(batch.is_taught.long(), k + 2)
        counted = is_there & (taught > 0)
        label = token if ids is None else torch.searchsorted(ids, token).clamp(max=len(ids) - 1)
        is_known = counted if ids is None else counted & (ids[label] == token)
        right = (one.argmax(-1) == label) & is_known
        losses.append(decay**k * F.cross_entropy(one[is_known], label[is_known]))
        alive = right if alive is None else alive & right
        hits.append(right.sum().float())
        counts.append(counted.sum().float())
        reached.append(alive.sum().float())
    return Lesson(torch.stack(losses).sum(), torch.stack(hits), torch.stack(counts), torch.stack(reached))
