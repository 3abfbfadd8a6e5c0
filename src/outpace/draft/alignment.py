"""The target's laws at the places of a text that it has scored, and tokens sampled from them.

Source: Wang et al. (2025), Alignment-Augmented Speculative Decoding, arXiv 2505.13204, alignment sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outpace.draft.likeliest import likeliest
from outpace.sampling import Sampler

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

    def sample(self, first: int, place: Tensor, sampler: Sampler) -> list[list[int]]:
        """Return tokens drawn without replacement, the first draw first; -1 = none.

        They are drawn with the target's own noise for the places where they are drafted, so that an expectation that
        has not changed draws the target's own token; without noise they are the likeliest in order.

        Args:
            first: index of the text's token that the first draw follows.
            place: [N] int64 positions that the draws are drafted for.
            sampler: of the row.
        """
        ids, logits = self._ids[first : first + len(place)], self._logits[first : first + len(place)]
        noisy = sampler.perturbed(logits.double().unsqueeze(0), place.unsqueeze(0), ids.unsqueeze(0))[0]
        noisy = noisy.masked_fill(ids < 0, float("-inf"))
        drawn: list[list[int]] = ids.gather(1, noisy.sort(dim=-1, descending=True, stable=True).indices).tolist()
        return drawn

    def beside(
        self, copied: Sequence[int], first: int, length: int, sampler: Sampler, most: int
    ) -> tuple[list[int], list[int]]:
        """Return copied tokens as a chain, and as leaves beside those that were not expected what was.

        Args:
            copied: tokens of the text.
            first: index of the text's token before them.
            length: of the text, which they are to follow.
            sampler: of the row.
            most: leaves beside one token; 0 = the chain alone.

        Returns:
            Tokens and the index of each one's parent, -1 = the last final token; the chain first.
        """
        tokens, parents = list(copied), list(range(-1, len(copied) - 1))
        if not most or not copied:
            return tokens, parents
        drawn = self.sample(first, torch.arange(length, length + len(copied)), sampler)
        for level, (token, others) in enumerate(zip(copied, drawn, strict=True)):
            if others[0] != token:
                leaves = [other for other in others if other not in (token, -1)][:most]
                tokens += leaves
                parents += [level - 1] * len(leaves)
        return tokens, parents

    def copy(self) -> AlignmentLaws:
        """Return an independent copy (a forked row)."""
        other = AlignmentLaws(1)
        other._ids, other._logits = self._ids.clone(), self._logits.clone()
        return other
