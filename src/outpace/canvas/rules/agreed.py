"""Writing from the left as far as something else agrees: the rule of guided diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outpace.canvas.reading import Reading
from outpace.canvas.row import Bools, CanvasRow
from outpace.canvas.rules.rule import Choice, Rule, eligible

__all__ = ["Agreed", "law_product", "leading"]


def leading(agrees: Bools) -> Bools:
    """Return [A] the places before the first disagreement, and in any case the first place."""
    run: Bools = np.logical_and.accumulate(agrees)
    run[:1] = True
    return run


@dataclass(frozen=True, slots=True)
class Agreed(Rule):
    """Write the places that a guide agrees with, from the left up to the first disagreement, and at least one place.

    Attributes:
        agrees: [A] bool, for one reading.
        is_open_ended: write beyond the block in work as well.
    """

    agrees: Bools
    is_open_ended: bool = False

    def choose(self, reading: Reading, row: CanvasRow, memo: Any) -> Choice:
        """Decide for one row."""
        agrees = self.agrees if reading.waits is None else self.agrees & ~reading.waits
        writes = leading(agrees)
        return Choice(writes if self.is_open_ended else writes & eligible(reading, row), memo=memo)


def law_product(diffusion: Tensor, guide: Tensor, weight: float) -> Tensor:
    """Return logits of the normalised product p_d^weight * p_g^(1 - weight), [..., V].

    Args:
        diffusion: [..., V] logits; -inf = forbidden, and so it stays.
        guide: [..., V] logits.
        weight: the diffusion model's exponent, from 0 to 1.
    """
    if weight == 1:  # not a bit may differ, or a tie would break the agreement
        return diffusion
    wide = torch.float64 if diffusion.dtype == torch.float64 else torch.float32
    is_forbidden = diffusion == float("-inf")
    own = diffusion.to(wide).log_softmax(-1).masked_fill(is_forbidden, 0.0)
    mixed = weight * own + (1 - weight) * guide.to(wide).log_softmax(-1)
    return mixed.masked_fill(is_forbidden, float("-inf"))
