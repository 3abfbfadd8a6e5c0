"""Which masked positions of a canvas are written: the low-confidence rule and the confidence threshold.

Source: Nie et al. (2025), LLaDA, arXiv 2502.09992, low-confidence re-masking (write the surest, leave the rest masked);
Wu et al. (2025), Fast-dLLM, arXiv 2505.22618, the threshold.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["write_surest"]


def write_surest(confidence: Tensor, is_masked: Tensor, least: int, threshold: float) -> Tensor:
    """Return [B, W] bool: masked positions to write now.

    Args:
        confidence: [B, W] probability of the token picked at each position.
        is_masked: [B, W] bool.
        least: positions written per row at least (as many as are masked, if fewer); ties go to the first position.
        threshold: positions at least this sure are written as well; above 1 = none.
    """
    ranked = confidence.masked_fill(~is_masked, -1.0)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return is_masked & ((rank < least) | (confidence >= threshold))
