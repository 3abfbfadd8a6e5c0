"""A block drafter with a recurrent state over the drafted path.

Paper: Huang et al. (2026), arXiv 2605.29707, Domino. On DFlash's body, logits += W2 SiLU(W1 [hidden; state]), where the
state is that of a GRU over the embeddings of the anchor and the drafted tokens; the first `pure` places do not hear it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from outpace.heads.dflash import DFlashNet
from outpace.heads.model import HeadModel
from outpace.heads.net import Frozen, HeadConfig

__all__ = ["DominoNet"]


class DominoNet(DFlashNet):
    """Settings beside DFlash's: rank (width of the joint layer), gru_size, pure."""

    kind: ClassVar[str] = "domino"
    has_pairs: ClassVar[bool] = False
    own: ClassVar[dict[str, Any]] = {**DFlashNet.own, "rank": 64, "gru_size": 64, "pure": 0}

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        size, rank, width = config.hidden_size, config.settings["rank"], config.settings["gru_size"]
        self.prefix_gru = nn.GRU(size, width, bias=False, batch_first=True)
        self.embed_proj = nn.Sequential(
            nn.Linear(size + width, rank, bias=False),
            nn.SiLU(),
            nn.Linear(rank, config.draft_vocab or config.vocab_size, bias=False),
        )
        nn.init.zeros_(self.embed_proj[2].weight)  # type: ignore[arg-type]

    def teach(self, frozen: Frozen, hidden: Tensor, logits: Tensor, before: Tensor, is_taught: Tensor) -> Tensor:
        """Return the laws with what the state adds."""
        state = self._states(frozen, before.flatten(0, 1)).view(*before.shape, -1)[is_taught]
        return self._add(hidden, logits, state, is_taught.nonzero()[:, -1])

    def follow(self, model: HeadModel, hidden: Tensor, logits: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return the laws with what the state adds."""
        states = self._states(model, path.flatten(0, 1))
        state = states[torch.arange(len(states), device=path.device), depth.flatten()].view(*depth.shape, -1)
        return self._add(hidden, logits, state, depth)

    def _states(self, target: HeadModel | Frozen, path: Tensor) -> Tensor:
        """Return the states [N, P, size] after each token of paths [N, P]."""
        embedded = target.embed(path.clamp(min=0))
        found: Tensor = self.prefix_gru(embedded)[0]
        return found

    def _add(self, hidden: Tensor, logits: Tensor, state: Tensor, depth: Tensor) -> Tensor:
        more: Tensor = self.embed_proj(torch.cat([hidden, state], -1))
        found: Tensor = logits + more * (depth >= self.config.settings["pure"]).unsqueeze(-1)
        return found
