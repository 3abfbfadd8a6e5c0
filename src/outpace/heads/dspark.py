"""A block drafter with a bigram between its places, and a confidence per place.

Paper: Cheng et al. (2026), DSpark. On DFlash's body, logits += W2 w1[token before]; the chance that a place's draft is
kept is sigmoid(proj [hidden; w1[token before]]). The original w1 is a table of the vocabulary; here it may be a matrix
on the target's embeddings instead, which a small drafter can afford and which knows rare tokens too.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.heads.dflash import DFlashNet, looked_up, new_table
from outpace.heads.model import HeadModel
from outpace.heads.net import Frozen, HeadConfig
from outpace.kernels.branches import Pairs

__all__ = ["DSparkNet"]


class MarkovHead(nn.Module):
    """W2 w1[token before]; begun at 0."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        rank = config.settings["rank"]
        self.markov_w1 = new_table(config, rank, config.settings["has_table"])
        self.markov_w2 = nn.Linear(rank, config.draft_vocab or config.vocab_size, bias=False)
        nn.init.zeros_(self.markov_w2.weight)


class Confidence(nn.Module):
    """A linear map to one number."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [...] of [..., size], in float32 at least, whatever the network's dtype."""
        kind = torch.promote_types(x.dtype, torch.float32)
        return F.linear(x.to(kind), self.proj.weight.to(kind), self.proj.bias.to(kind))[..., 0]


class DSparkNet(DFlashNet):
    """Settings beside DFlash's: rank, has_table (w1 is a table), has_confidence."""

    kind: ClassVar[str] = "dspark"
    own: ClassVar[dict[str, Any]] = {**DFlashNet.own, "rank": 64, "has_table": False, "has_confidence": True}

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        own = config.settings
        self.markov_head = MarkovHead(config)
        self.confidence_head = Confidence(config.hidden_size + own["rank"]) if own["has_confidence"] else None

    def add(self, target: HeadModel | Frozen, hidden: Tensor, logits: Tensor, before: Tensor) -> Tensor:
        """Return the laws with the bigram's share."""
        del hidden
        found: Tensor = logits + self.markov_head.markov_w2(looked_up(self.markov_head.markov_w1, target, before))
        return found

    def pairs(self, model: HeadModel) -> Pairs:
        """Return the bigram."""
        ids = torch.arange(self.config.vocab_size) if model.ids is None else model.ids
        first: Any = self.markov_head.markov_w1
        shorts = looked_up(first, model, ids)
        return Pairs.of(shorts, self.markov_head.markov_w2.weight, first.weight, isinstance(first, nn.Embedding))

    def confidence(self, target: HeadModel | Frozen, hidden: Tensor, before: Tensor) -> Tensor | None:
        """Return logits [...] of hidden states [..., H] and the tokens before their places [...]."""
        if self.confidence_head is None:
            return None
        short = looked_up(self.markov_head.markov_w1, target, before)
        found: Tensor = self.confidence_head(torch.cat([hidden, short.to(hidden.dtype)], -1))
        return found
