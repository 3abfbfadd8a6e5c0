"""Linear maps turn a token's state into those of the places behind it, which then pass the rest of the target.

Paper: Wu et al. (2024), arXiv 2404.12022, Hidden Transfer (section 3). The state that enters a middle layer becomes, by
one matrix per place, the pseudo states of the next places there; they pass the target's remaining layers, see the text
and those before them, and leave by the target's own output matrix. Nothing of the text sees them.

Here the pseudo states pass in a forward of their own, over the remaining layers alone and on a fork of the target's
cache, once the last step has told which state is the newest; the paper lets those of every tree node ride along in the
check itself. Their laws are the same, the check stays narrow, and no entry has to be taken out of the cache again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from outpace.errors import ConfigError
from outpace.heads.draft import HeadDrafter, SlotDrafter
from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, HeadConfig
from outpace.heads.slots import Options, SlotNet, at_depth
from outpace.types import Context, View

__all__ = ["TransferDrafter", "TransferNet"]


class TransferNet(SlotNet):
    """Settings: depth (places), layer (which the pseudo states enter; 0 = the middle one)."""

    kind: ClassVar[str] = "hidden-transfer"
    options: ClassVar[Options] = {"layer": (0, 0)}

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.transfer = nn.ModuleList([nn.Linear(size, size, bias=False) for _ in range(config.depth)])
        for one in self.transfer:
            nn.init.eye_(one.weight)  # type: ignore[arg-type]

    @classmethod
    def made_for(
        cls, hidden_size: int, vocab_size: int, num_layers: int, target: str = "", **settings: Any
    ) -> HeadConfig:
        """Return the configuration; see the class for its settings."""
        found = super().made_for(hidden_size, vocab_size, num_layers, target, **settings)
        layer = found.settings["layer"] or num_layers // 2
        if layer >= num_layers:
            raise ConfigError(f"layer is {layer}.", f"The target has layers 0 to {num_layers - 1}.")
        return HeadConfig(**{**found.to_dict(), "layers": (layer,), "has_last": False, "settings": {"layer": layer}})

    def pseudo(self, states: Tensor, count: int) -> Tensor:
        """Return the states of the next `count` places, [..., count, hidden], of states [..., hidden]."""
        return torch.stack([one(states) for one in list(self.transfer)[:count]], -2)

    def laws(self, batch: Batch) -> list[Tensor]:
        """Return per depth logits [B, T, K]: all pseudo states behind all tokens pass in one forward."""
        rows, size, depth = *batch.tokens.shape, self.config.depth
        pseudo = self.pseudo(batch.states, depth)
        place = torch.arange(size, device=pseudo.device)
        step = torch.arange(depth, device=pseudo.device)
        # Who stands where, and behind which token of the text; a token of the text stands behind itself, at step -1.
        behind = torch.cat([place, place.repeat_interleave(depth)])
        ahead = torch.cat([torch.full_like(place, -1), step.repeat(size)])
        is_text = ahead < 0
        sees = is_text & (behind <= behind.unsqueeze(1))
        sees = sees | (~is_text & (behind == behind.unsqueeze(1)) & (ahead <= ahead.unsqueeze(1)))
        inputs = torch.cat([batch.states, pseudo.flatten(1, 2)], 1)
        position, visible = (behind + ahead + 1).expand(rows, -1), sees.expand(rows, -1, -1)
        last, _ = batch.frozen.forward(inputs, position, visible, first=self.config.layers[0])
        return [batch.frozen.logits(x) for x in last[:, size:].unflatten(1, (size, depth)).unbind(2)]

    def new_drafter(self, model: HeadModel, context: Context) -> HeadDrafter:
        """Return a drafter that asks the target's last layers."""
        return TransferDrafter.begin_with(model, context)

    def after(self, model: HeadModel, slots: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return logits [B, N, K]; the places do not know the path."""
        del model, path
        return at_depth(slots, depth.clamp(max=slots.shape[1] - 1))


@dataclass
class TransferDrafter(SlotDrafter):
    """Sends pseudo states through the target's last layers, on a fork of the target's cache."""

    def reach(self, view: View, most: int | Sequence[int]) -> list[int]:
        """Return how many tokens ahead each row may draft: the target's cache has to hold all rows' pseudo states."""
        held = view.cache.lengths
        room = min(view.cache.capacity, self.adapter.target.capabilities.max_positions) - max(held, default=0)
        rows = zip(super().reach(view, most), held, view.lengths, strict=True)
        return [max(0, min(n, room)) if entries == length - 1 else 0 for n, entries, length in rows]

    def make(self, view: View, reach: Sequence[int], last: Tensor) -> Tensor:
        """Return the laws of all places ahead, [B, D, K]."""
        del last
        model, net = self.adapter, self.adapter.net
        assert isinstance(net, TransferNet)
        inputs = net.pseudo(self.states(view, reach), max(1, *reach))
        step = torch.arange(inputs.shape[1], device=self.device)
        held, ahead = torch.tensor([view.cache.lengths, list(reach)], device=self.device).unsqueeze(-1)
        position = torch.where(step < ahead, held + step, -1)
        fork, tokens = view.cache.fork(self.cache.counter), torch.zeros_like(position)
        asked = model.target if model.trimmed is None else model.trimmed
        logits = asked.score(tokens, position, None, fork, inputs=inputs, skip=range(net.config.layers[0])).logits
        return logits if model.trimmed is not None or model.ids is None else logits[..., model.ids]
