"""Heads that leap: head m on the state of token t tells token t + 1 + m * leap, and earlier states fill the gaps.

Paper: Liu et al. (2025), arXiv 2505.17505, L-MTP (sections 3.1 and 3.2). One forward of the target tells every
`leap`-th place ahead; the forwards of the `leap` - 1 tokens before told the places between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from outpace.heads.draft import HeadDrafter, SlotDrafter
from outpace.heads.medusa import Block
from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, HeadConfig
from outpace.heads.slots import Options, SlotNet, at_depth
from outpace.types import Context, Outcome, View

__all__ = ["LeapDrafter", "LeapNet"]


class LeapNet(SlotNet):
    """Settings: depth (places ahead), leap, blocks (per head). There are depth / leap heads, rounded up."""

    kind: ClassVar[str] = "l-mtp"
    options: ClassVar[Options] = {"leap": (2, 1), "blocks": (1, 1)}

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.leap = int(self.option("leap"))
        size, blocks, count = config.hidden_size, int(self.option("blocks")), -(-config.depth // self.leap)
        self.heads = nn.ModuleList(nn.Sequential(*(Block(size) for _ in range(blocks))) for _ in range(count))

    def sources(self) -> list[tuple[int, int]]:
        """Return for each place ahead the head that tells it, from 0, and how many tokens before the last its state is.

        Place d stands d + 2 behind the last known state; head m, from 0, tells what is 1 + (m + 1) * leap behind its
        own.
        """
        return [(d // self.leap, self.leap - 1 - d % self.leap) for d in range(self.config.depth)]

    def laws(self, batch: Batch) -> list[Tensor]:
        """Return the laws of each place ahead, told by the head and the state that tell it in drafting."""
        told = [batch.frozen.logits(head(batch.states)) for head in self.heads]
        place = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        return [told[head][:, (place - back).clamp(min=0)] for head, back in self.sources()]

    def new_drafter(self, model: HeadModel, context: Context) -> HeadDrafter:
        """Return a drafter that keeps the last states."""
        return LeapDrafter.begin_with(model, context)

    def slots(self, model: HeadModel, states: Tensor, token: Tensor) -> Tensor:
        """Return [B, D, hidden] of the last states [B, leap, hidden], oldest first."""
        del model, token
        return torch.stack([self.heads[head](states[:, -1 - back]) for head, back in self.sources()], 1)

    def after(self, model: HeadModel, slots: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return logits [B, N, K]; heads do not know the path."""
        del path
        return model.logits(at_depth(slots, depth))


@dataclass
class LeapDrafter(SlotDrafter):
    """Drafts from the states of the last `leap` tokens whose states are known."""

    @property
    def _count(self) -> int:
        return self.adapter.net.leap  # type: ignore[return-value]

    def observe(self, outcome: Outcome, view: View) -> None:
        """Keep the states of the last tokens alone."""
        HeadDrafter.observe(self, outcome, view)
        for row, held in enumerate(self.features.held):
            if len(held) > self._count:
                self.features.starts[row] += len(held) - self._count
                self.features.held[row] = held[-self._count :]

    def states(self, view: View, reach: Sequence[int]) -> Tensor:
        """Return [B, leap, F], oldest first; the oldest that is known stands for those that are not."""
        del view
        none = torch.zeros(1, self.adapter.net.config.states_size, dtype=self.adapter.dtype, device=self.device)
        held = [held if ahead else none for held, ahead in zip(self.features.held, reach, strict=True)]
        return torch.stack([torch.cat([one[:1].expand(self._count - len(one), -1), one]) for one in held])
