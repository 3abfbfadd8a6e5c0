"""Mixtures of experts: how tokens are routed, and the product of those experts that they are sent to.

Routers of the field in one: scores by softmax or sigmoid; a bias that moves the choice and never the weights, and
choices limited to the best groups (DeepSeek-V3, section 2.1.2, arXiv 2412.19437; LLaDA2); weights normalised or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from outpace.errors import ModelError
from outpace.models.weights import Matrix

__all__ = ["Mixture", "Routing", "route"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """What a mixture is.

    Attributes:
        experts: how many there are.
        chosen: how many a token is sent to.
        ffn_size: width inside an expert.
        shared_size: width inside the expert that every token passes; 0 = there is none.
        dense: leading layers that have one MLP instead.
        is_sigmoid: scores are sigmoids; else a softmax over the experts.
        is_normalised: the chosen experts' weights sum to 1, times `scale`.
        scale: factor on the weights.
        groups, top_groups: experts lie in so many groups, and only those of the `top_groups` best may be chosen; a
            group is as good as the sum of its two best.
        has_bias: a bias per expert is added for the choice alone.

    Raises:
        ModelError: numbers that cannot be met.
    """

    experts: int
    chosen: int
    ffn_size: int
    shared_size: int = 0
    dense: int = 0
    is_sigmoid: bool = False
    is_normalised: bool = False
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1
    has_bias: bool = False

    def __post_init__(self) -> None:
        reach = self.experts // max(self.groups, 1) * self.top_groups
        if min(self.experts, self.ffn_size, self.groups, self.top_groups) < 1 or not 1 <= self.chosen <= reach:
            raise ModelError(f"{self.chosen} of {self.experts} experts cannot be chosen in {self.groups} groups.")
        if self.experts % self.groups or self.top_groups > self.groups:
            raise ModelError(
                f"{self.experts} experts do not lie in {self.groups} groups, of which {self.top_groups} count."
            )
        if self.groups > 1 and self.experts // self.groups < 2:
            raise ModelError("Groups of one expert have no two best.")


@dataclass(slots=True)
class Mixture:
    """The experts of one layer.

    Attributes:
        routing: how tokens are sent.
        router: [experts, E].
        bias: [experts], for the choice; None = none.
        up: per expert [2F, E], gate first.
        down: per expert [E, F].
    """

    routing: Routing
    router: Tensor
    bias: Tensor | None
    up: list[Matrix]
    down: list[Matrix]

    def matrices(self) -> Iterator[Matrix]:
        """Yield every expert's matrices."""
        for up, down in zip(self.up, self.down, strict=True):
            yield up
            yield down

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the chosen experts make of x [N, E]; activations are SiLU."""
        weights, index = route(self.routing, x, self.router, self.bias)
        found = torch.zeros_like(x)
        # By expert, not by token: each matrix is read once, whatever many tokens come to it.
        for expert in index.unique().tolist():
            token, place = (index == expert).nonzero(as_tuple=True)
            gate, up = self.up[expert](x[token]).chunk(2, dim=-1)
            made = self.down[expert](F.silu(gate).mul_(up))
            found.index_add_(0, token, made * weights[token, place, None].to(made.dtype))
        return found


def route(routing: Routing, x: Tensor, router: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weights and numbers of the chosen experts, each [N, chosen], for tokens x [N, E]."""
    # At least in float32: a score that is rounded to bfloat16 sends tokens elsewhere.
    wide = torch.promote_types(x.dtype, torch.float32)
    logits = F.linear(x.to(wide), router.to(wide))
    scores = logits.sigmoid() if routing.is_sigmoid else logits.softmax(-1)
    choice = scores if bias is None else scores + bias.to(wide)
    if routing.top_groups < routing.groups:
        grouped = choice.view(len(x), routing.groups, -1)
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(routing.top_groups, dim=-1).indices
        is_out = torch.ones(len(x), routing.groups, dtype=torch.bool, device=x.device).scatter(1, best, value=False)
        choice = grouped.masked_fill(is_out[..., None], float("-inf")).flatten(1)
    index = choice.topk(routing.chosen, dim=-1).indices
    weights = scores.gather(1, index)
    if routing.is_normalised:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * routing.scale, index
