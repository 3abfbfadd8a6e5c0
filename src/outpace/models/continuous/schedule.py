"""Noise over time, and time over places."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Schedule", "staggered"]

LEAST, MOST = -6.0, 8.0  # of gamma, where the text is all but clean and all but noise


class Schedule(nn.Module):
    """Gamma of a time from 0 (clean) to 1 (noise), ascending.

    Args:
        name: "cosine" (Nichol and Dhariwal, 2021), "sqrt" (Li et al., 2022), "linear" in gamma, or "learned": its ends
            and a monotone line of 32 pieces between them (Gulrajani and Hashimoto, 2023, learn a monotone network).
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        if name == "learned":
            self.ends = nn.Parameter(torch.tensor([-3.0, 6.0]))
            self.pieces = nn.Parameter(torch.zeros(32))

    def forward(self, time: Tensor) -> Tensor:
        """Return gamma of times, in their shape."""
        if self.name == "learned":
            shares = self.pieces.softmax(0).to(time.dtype)
            place = (time * len(shares)).clamp(0, len(shares))
            index = place.long().clamp(max=len(shares) - 1)
            rise = F.pad(shares.cumsum(0), (1, 0))[index] + shares[index] * (place - index)
            return self.ends[0] + (self.ends[1] - self.ends[0]) * rise
        if self.name == "linear":
            return LEAST + (MOST - LEAST) * time
        if self.name == "cosine":
            return (2 * torch.log(torch.tan(math.pi / 2 * time.clamp(1e-6, 1 - 1e-6)))).clamp(LEAST, MOST)
        power = (1 - (time + 1e-4).clamp(max=1).sqrt()).clamp(1e-6, 1 - 1e-6)  # of the signal
        return torch.log((1 - power) / power).clamp(LEAST, MOST)

    def slope(self, time: Tensor) -> Tensor:
        """Return the derivative of a learned schedule, shaped like `time`."""
        index = (time * len(self.pieces)).long().clamp(max=len(self.pieces) - 1)
        return (self.ends[1] - self.ends[0]) * (self.pieces.softmax(0) * len(self.pieces)).to(time.dtype)[index]


def staggered(progress: Tensor, length: int, levels: int) -> Tensor:
    """Return the time of each place where left ones finish first, shaped [..., length].

    Paper: Wu et al. (2023), arXiv 2305.09515 (AR-Diffusion), section 3.1: places and levels span a plane, and the times
    of a moment lie on a line towards the anchor (twice the last place, the highest level).

    Args:
        progress: [...], from 1 (all is noise) to 0 (all is clean).
        length: places.
        levels: of noise, as many as a place passes.
    """
    moment = progress[..., None] * (length + levels)
    place = torch.arange(length, dtype=moment.dtype, device=moment.device)
    first, low = (length - moment).clamp(0, length), (moment - length).clamp(0, levels)
    line = low + (levels - low) / (2 * length - first) * (place - first)
    return line.clamp(0, levels) / levels
