"""What the last layer says and an earlier one does not yet.

Paper: Chuang, Xie, Luo, Kim, Glass, He (2023), "DoLa: Decoding by Contrasting Layers Improves Factuality in Large
    Language Models", arXiv 2309.03883: log p - log p_early where p is at least `floor` times its largest, p_early being
    the law, of the candidate layers, that lies furthest from p (Jensen-Shannon).
Guarantee: that law exactly; drafts obey it. `weight=0` leaves the target's texts as they are, token for token.
Cost: the head once more for each candidate layer; no forward.
Differences: `weight` scales the early law (the paper's is 1). Early states are read through the final norm and head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from outpace.laws.base import Control, Site
from outpace.laws.beside import Early
from outpace.papers import Paper
from outpace.setting import setting
from outpace.types import Adapter

__all__ = ["Dola", "divergence"]

PAPERS = (
    Paper(
        "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models",
        "Chuang, Xie, Luo, Kim, Glass, He",
        2023,
        "2309.03883",
        command='outpace generate "Once upon a time" --law dola:weight=1',
    ),
)


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence [...] in nats of two laws, given as log-probabilities [..., V]."""
    middle = torch.logaddexp(one, other) - torch.log(torch.tensor(2.0, dtype=one.dtype, device=one.device))
    return sum(((law.exp() * (law - middle)).sum(-1) for law in (one, other)), torch.zeros_like(one[..., 0])) / 2


@dataclass(frozen=True)
class Dola(Control):
    """The last layer against the candidate that differs most; no layers named = the embeddings and every second one."""

    name: ClassVar[str] = "dola"
    summary: ClassVar[str] = "what the last layer says and an earlier one does not yet"
    is_model: ClassVar[bool] = True

    layers: tuple[int, ...] = setting((), least=0)
    weight: float = setting(1.0, least=0, is_finite=True)
    floor: float = setting(0.1, least=0, most=1)

    def mix(self, own: Tensor, others: list[Tensor]) -> Tensor:
        """Return the law's logits [..., V] of the last layer's log-probabilities and of candidates'."""
        far = torch.stack([divergence(own, other) for other in others]).argmax(0)  # ties: the earliest layer
        chosen = torch.stack(others, -1).gather(-1, far[..., None, None].expand(*own.shape, 1)).squeeze(-1)
        cut = own.amax(-1, keepdim=True) + torch.tensor(self.floor, dtype=own.dtype).log().to(own.device)
        return (own - self.weight * chosen).masked_fill(own < cut, float("-inf"))

    def target(self, site: Site) -> Adapter:
        """Return the target, read in two places."""
        count = site.target.capabilities.num_layers
        return site.target if self.weight == 0 else Early(site.target, self.layers or range(0, count, 2), self.mix)
