"""A block drafter with dynamic convolutions over its places, and a selector among each place's likeliest tokens.

Source: DFlash2's published files. The convolutions are those of `outpace.heads.block_layers.PlaceConv`. With u_c the
body's logits of a place's `top` likeliest tokens and h its hidden state, the score of c after p is
u_c + <A[p] * (W h), B[c]>. In training all tokens compete, so that the text's own is always among them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.heads.dflash import DFlashNet, looked_up, new_table
from outpace.heads.model import HeadModel
from outpace.heads.net import Frozen, HeadConfig

__all__ = ["DFlash2Net"]


class Selector(nn.Module):
    """The selector's tables; B begins at 0."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        rank = config.settings["rank"]
        self.predecessor_codebook = new_table(config, rank, config.settings["has_table"])
        self.successor_codebook = nn.Parameter(torch.zeros(config.draft_vocab or config.vocab_size, rank))
        self.hidden_projection = nn.Linear(config.hidden_size, rank, bias=False)

    def wanted(self, target: HeadModel | Frozen, hidden: Tensor, before: Tensor) -> Tensor:
        """Return A[p] * (W h), [..., rank]."""
        found: Tensor = looked_up(self.predecessor_codebook, target, before) * self.hidden_projection(hidden)
        return found


class DFlash2Net(DFlashNet):
    """Settings beside DFlash's: conv_taps, conv_group (channels that share a kernel), rank, top, has_table (of A)."""

    kind: ClassVar[str] = "dflash2"
    has_pairs: ClassVar[bool] = False
    own: ClassVar[dict[str, Any]] = {
        **DFlashNet.own,
        "conv_taps": 2,
        "conv_group": 16,
        "rank": 64,
        "top": 16,
        "has_table": False,
    }

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.candidate_selector = Selector(config)

    def add(self, target: HeadModel | Frozen, hidden: Tensor, logits: Tensor, before: Tensor) -> Tensor:
        """Return the laws with the selector's share, of all tokens."""
        selector = self.candidate_selector
        return logits + F.linear(selector.wanted(target, hidden, before), selector.successor_codebook)

    def follow(self, model: HeadModel, hidden: Tensor, logits: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return the laws with the selector's share; -inf outside the candidates."""
        selector, before = self.candidate_selector, path.gather(-1, depth.unsqueeze(-1))[..., 0]
        best, index = logits.topk(min(self.config.settings["top"], logits.shape[-1]), -1)
        wanted = selector.wanted(model, hidden, before)
        best = best + (selector.successor_codebook[index] @ wanted.unsqueeze(-1))[..., 0].to(best.dtype)
        return torch.full_like(logits, float("-inf")).scatter(-1, index, best)
