"""The target's laws at the places of a text that it has scored, and tokens sampled from them.

Source: Wang et al. (2025), Alignment-Augmented Speculative Decoding, arXiv 2505.13204, alignment sampling.
"""

from __future__ import annotations

import torch
from torch import Tensor

from outpace.draft.likeliest import likeliest
from outpace.sampling import gumbel

__all__ = ["AlignmentLaws"]


class AlignmentLaws:
    """What the target expected after each token of one row's text: its likeliest next tokens and their logits.

    Args:
        width: tokens kept per place.
    """

    def __init__(self, width: int) -> None:
        self._ids = torch.full((64, width), -1, dtype=torch.int64)  # -1 = not scored
        self._logits = torch.zeros(64, width)

    @property
    def num_bytes(self) -> int:
        """Size of what is kept."""
        return self._ids.nbytes + self._logits.nbytes

    def save(self, first: int, logits: Tensor) -> None:
        """Keep the likeliest tokens at places from `first` on.

        Args:
            first: index of the text's token that the first row follows.
            logits: [N, V].
        """
        size, width = self._ids.shape
        end = first + logits.shape[0]
        if end > size:
            more = max(size, end - size)
            self._ids = torch.cat([self._ids, self._ids.new_full((more, width), -1)])
            self._logits = torch.cat([self._logits, self._logits.new_zeros(more, width)])
        ids = likeliest(logits, min(width, logits.shape[-1]))
        self._ids[first:end, : ids.shape[1]] = ids.to(self._ids.device)
        self._logits[first:end, : ids.shape[1]] = logits.gather(1, ids).float().to(self._logits.device)

    def sample(self, first: int, temperature: float, key: Tensor) -> list[list[int]]:
        """Return tokens drawn without replacement at places from `first` on, the first draw first; -1 = none.

        Args:
            first: index of the text's token that the first draw follows.
            temperature: 0 = the likeliest tokens in order.
            key: [N] noise of each draw; the target's own for the place that a draft would take, so that an expectation
                that has not changed draws the target's own token.
        """
        ids, logits = self._ids[first : first + len(key)], self._logits[first : first + len(key)]
        if temperature > 0:
            logits = logits.double() / temperature + gumbel(key.to(ids.device), ids)
        order = logits.masked_fill(ids < 0, float("-inf")).sort(dim=-1, descending=True, stable=True).indices
        drawn: list[list[int]] = ids.gather(1, order).tolist()
        return drawn

    def copy(self) -> AlignmentLaws:
        """Return an independent copy (a forked row)."""
        other = AlignmentLaws(1)
        other._ids, other._logits = self._ids.clone(), self._logits.clone()
        return other
