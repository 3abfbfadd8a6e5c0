"""How long a text is, read off its source: a law over how many tokens it has more than the source.

Source: Ghazvininejad et al. (2019), arXiv 1904.09324, section 3.3, with differences for lengths (as fairseq offers).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .network import Pass

__all__ = ["Lengths"]


class Lengths(nn.Module):
    """The law of a text's length.

    Args:
        width: of the source's states.
        reach: texts are at most so many tokens longer or shorter than their sources, ends included there.
        most: places of the longest text.
    """

    def __init__(self, width: int, reach: int, most: int) -> None:
        super().__init__()
        self.reach, self.most = reach, most
        self.rows = nn.Linear(width, 2 * reach + 1)

    def forward(self, states: Tensor, is_real: Tensor) -> Tensor:
        """Return the log-probabilities [B, 2 reach + 1] of -reach, ..., reach more tokens, in float32 or float64."""
        mean = (states * is_real[:, :, None]).sum(1) / is_real.sum(1, keepdim=True)
        logits: Tensor = self.rows(mean)
        return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)

    def nll(self, law: Tensor, run: Pass) -> Tensor:
        """Return the negative log-likelihood [B] of the targets' lengths in nats; beyond the reach, its border's."""
        more = (run.lengths - run.is_real.sum(1)).clamp(-self.reach, self.reach) + self.reach
        return -law.gather(1, more[:, None])[:, 0]

    def best(self, law: Tensor, is_real: Tensor, count: int = 1) -> Tensor:
        """Return the `count` likeliest lengths [B, count], the best first; as many as the reach holds, if fewer."""
        lengths = is_real.sum(1, keepdim=True) + torch.arange(-self.reach, self.reach + 1, device=law.device)
        allowed = law.masked_fill((lengths < 1) | (lengths > self.most), float("-inf"))
        # Sorted stably, so that of two equal ones the shorter comes first.
        index = allowed.sort(dim=1, descending=True, stable=True)[1][:, :count]
        return lengths.gather(1, index).clamp(1, self.most)
