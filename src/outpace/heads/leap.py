"""Heads that leap: head m on the state of token t tells token t + 1 + m * leap, and earlier states fill the gaps.

Paper: Liu et al. (2025), arXiv 2505.17505, L-MTP (sections 3.1 and 3.2). One forward of the target tells every `leap`-th
place ahead; the forwards of the `leap` - 1 tokens before told the places between.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from outpace.errors import ConfigError
from outpace.heads.draft import HeadDrafter, SlotDrafter
from outpace.heads.medusa import Block, slot_lesson
from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, HeadConfig, HeadNet, Lesson
from outpace.types import Context

__all__ = ["LeapNet"]


class LeapNet(HeadNet):
    """Settings: depth (places ahead), leap, blocks (per head). There are depth / leap heads, rounded up."""

    kind: ClassVar[str] = "l-mtp"

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.num_states = int(config.settings.get("leap", 2))
        size, blocks = config.hidden_size, int(config.settings.get("blocks", 1))
        count = -(-config.depth // self.num_states)
        self.heads = nn.ModuleList(nn.Sequential(*(Block(size) for _ in range(blocks))) for _ in range(count))

    @classmethod
    def made_for(
        cls, hidden_size: int, vocab_size: int, num_layers: int, target: str = "", **settings: Any
    ) -> HeadConfig:
        """Return the configuration; see the class for its settings.

        Raises:
            ConfigError: a setting below 1, or one that the kind does not have.
        """
        own = {"leap": int(settings.pop("leap", 2)), "blocks": int(settings.pop("blocks", 1))}
        for name, value in own.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}.", "Use 1 or more.")
        base = super().made_for(hidden_size, vocab_size, num_layers, target, **settings)
        return HeadConfig(**{**base.to_dict(), "layers": (), "settings": own})

    def sources(self) -> list[tuple[int, int]]:
        """Return for each place ahead the head that tells it, from 0, and how many tokens before the last its state is.

        Place d stands d + 2 behind the last known state; head m tells what is 1 + (m + 1) * leap behind its own.
        """
        leap = self.num_states
        return [(d // leap, leap - 1 - d % leap) for d in range(self.config.depth)]

    def loss(self, batch: Batch) -> Lesson:
        """Mean cross-entropy of each place ahead, told by the head and the state that tell it in drafting."""
        told = [batch.frozen.logits(head(batch.states)) for head in self.heads]
        place = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        return slot_lesson([told[head][:, (place - back).clamp(min=0)] for head, back in self.sources()], batch)

    def new_drafter(self, model: HeadModel, context: Context) -> HeadDrafter:
        """Return a drafter from laws of places ahead."""
        return SlotDrafter.begin_with(model, context)

    def slots(self, model: HeadModel, states: Tensor, token: Tensor) -> Tensor:
        """Return [B, D, hidden] of the last states [B, leap, hidden], oldest first."""
        del model, token
        return torch.stack([self.heads[head](states[:, -1 - back]) for head, back in self.sources()], 1)

    def after(self, model: HeadModel, slots: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return logits [B, N, K]; heads do not know the path."""
        del path
        return model.logits(slots.gather(1, depth.unsqueeze(-1).expand(-1, -1, slots.shape[-1])))
