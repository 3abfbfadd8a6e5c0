"""Networks whose drafts are laws of places ahead: what their training and their settings have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from outpace.errors import ConfigError
from outpace.heads.draft import HeadDrafter, SlotDrafter
from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, HeadConfig, HeadNet, Lesson, shifted
from outpace.types import Context

__all__ = ["Options", "SlotNet", "at_depth", "shifted_states", "slot_lesson"]


Options = Mapping[str, tuple[float, float]]


class SlotNet(HeadNet):
    """Base of networks for a `SlotDrafter`; subclasses give `laws`, `slots` and `after`."""

    options: ClassVar[Options] = {}
    """The kind's own settings: what each is unless it is given, and the least it may be."""

    @classmethod
    def made_for(
        cls, hidden_size: int, vocab_size: int, num_layers: int, target: str = "", **settings: Any
    ) -> HeadConfig:
        """Return the configuration; see the class for its settings."""
        own = {name: _read(name, settings.pop(name, kept[0]), *kept) for name, kept in cls.options.items()}
        base = super().made_for(hidden_size, vocab_size, num_layers, target, **settings)
        return HeadConfig(**{**base.to_dict(), "layers": base.layers, "settings": own})

    def option(self, name: str) -> Any:
        """Return a setting of the kind's own."""
        return self.config.settings.get(name, self.options[name][0])

    @abstractmethod
    def laws(self, batch: Batch) -> list[Tensor]:
        """Return per depth k logits [B, T, K]: at place t, of the token at t + 2 + k, those before it being given."""

    def loss(self, batch: Batch) -> Lesson:
        """Return the cross-entropy of all places ahead against the text, and how well they were guessed."""
        return slot_lesson(self.laws(batch), batch)

    def new_drafter(self, model: HeadModel, context: Context) -> HeadDrafter:
        """Return a drafter from laws of places ahead."""
        return SlotDrafter.begin_with(model, context)


def _read(name: str, value: Any, usual: float, least: float) -> Any:
    try:
        found = type(usual)({"true": True, "false": False}.get(value, value) if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} is {value!r}.", f"Give a number, such as {usual}.") from None
    if found < least:
        raise ConfigError(f"{name} is {found}.", f"Use {least} or more.")
    return found


def at_depth(slots: Tensor, depth: Tensor) -> Tensor:
    """Return what stands at some depths [B, N] of slots [B, D, H], as [B, N, H]."""
    return slots.gather(1, depth.unsqueeze(-1).expand(-1, -1, slots.shape[-1]))


def shifted_states(states: Tensor, by: int) -> Tensor:
    """Return [B, T, ...] states of the token `by` places further on, zeros where there is none."""
    moved = torch.zeros_like(states)
    moved[:, : max(0, states.shape[1] - by)] = states[:, by:]
    return moved


def slot_lesson(logits: list[Tensor], batch: Batch, decay: float = 0.8, has_teacher: bool = False) -> Lesson:
    """Return the lesson of laws of places ahead.

    Args:
        logits: per depth k, [B, T, K]: at place t, of the token at t + 2 + k.
        batch: the texts.
        decay: weight of a depth over that of the one before it.
        has_teacher: the target's law is learned instead of the text's token.
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
        goal = label[is_known]
        if has_teacher:
            goal = batch.frozen.logits(shifted_states(batch.last, k + 1)[is_known]).softmax(-1).detach()
        losses.append(decay**k * F.cross_entropy(one[is_known], goal))
        alive = right if alive is None else alive & right
        hits.append(right.sum().float())
        counts.append(counted.sum().float())
        reached.append(alive.sum().float())
    return Lesson(torch.stack(losses).sum(), torch.stack(hits), torch.stack(counts), torch.stack(reached))
