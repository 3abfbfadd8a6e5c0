"""Write a text place by place in the order that a policy chooses from what is written.

Paper: Wang et al. (2025), arXiv 2503.05979 (LO-ARM).
Guarantee: approximate: it is the model's own law, but tokens that settings forbid later are not drawn anew. The same
    seed gives the same text, in a batch too.
Cost: a call of the decoder per place of the model, whatever the text's length.
Differences: at temperature 0 the likeliest place is taken as well; else places are drawn at temperature 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from outpace.methods.whole.base import WholeMethod
from outpace.models.nar.model import NarModel
from outpace.models.nar.ordered import PAPERS, Ordered, chance_of
from outpace.papers import Paper
from outpace.sampling.noise import Stream, gumbel
from outpace.setting import setting
from outpace.types import Context

__all__ = ["LearnedOrder"]


@dataclass(frozen=True)
class LearnedOrder(WholeMethod):
    """Writing in a learned order.

    Attributes:
        order: "model", "random", or "left" to right, whatever the model was trained for.
    """

    order: str = setting("model", among=("model", "random", "left"))

    name: ClassVar[str] = "learned-order"
    summary: ClassVar[str] = "Writes a text place by place in the order that a policy chooses as it goes."
    kinds: ClassVar[tuple[str, ...]] = ("ordered",)
    runs_alone: ClassVar[bool] = True
    paper: ClassVar[Paper] = PAPERS[0]

    def choose(self, model: NarModel, context: Context) -> Sequence[Tensor]:
        """Write all places; see `WholeMethod.choose`."""
        assert isinstance(model.net, Ordered) and context.cache is not None
        net, sampler, run = model.net, context.sampler, model.begin(context.sources)
        tokens = torch.full(run.is_place.shape, net.config.mask_token)
        laws = run.states.new_full((*tokens.shape, net.config.vocab_size), float("nan"))
        rows = torch.arange(len(tokens))
        for step in range(net.config.length):
            log_probs, following = net.said(run, tokens.to(run.states.device))
            context.cache.counter.add(tokens.numel(), len(net.decoder))
            is_open = tokens == net.config.mask_token
            at = self._chosen(following.cpu(), is_open, context, step)
            law = log_probs[rows, at].to(laws)
            # Keyed by place, as the loop will key it: it draws the same token from the same law.
            picked = sampler.pick(sampler.process(law[:, None], None), (at + 1)[:, None].to(law.device))
            laws[rows, at], tokens[rows, at] = law, picked[:, 0].cpu().clamp(min=0)
        return [model.ended(law, said) for law, said in zip(laws, tokens, strict=True)]

    def _chosen(self, following: Tensor, is_open: Tensor, context: Context, step: int) -> Tensor:
        """Return the place of each row that is written next, [B] int64."""
        if self.order == "left":
            return torch.full((len(following),), step)
        if self.order == "random":
            following = chance_of(torch.zeros_like(following), is_open)
        if not context.sampler.settings.is_greedy or self.order == "random":
            key = context.sampler.noise(Stream.ORDER, torch.full((len(following), 1), step))
            following = following + gumbel(key, torch.arange(following.shape[1]))[:, 0]
        return following.argmax(-1)
