"""Token trees as tensors: who sees whom and how deep, from parent indices, without Python per node."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ancestors", "depth"]


def ancestors(parent: Tensor) -> Tensor:
    """Return [B, W, W] bool: node (row) sees node (column) if it is an ancestor or itself.

    Args:
        parent: [B, W] int64, -1 = last final token; parents precede children.
    """
    width = parent.shape[1]
    # Column 0 stands for the root, so that -1 needs no special case.
    step = torch.nn.functional.one_hot(parent + 1, width + 1)[:, :, 1:].to(torch.float32)
    reach = step + torch.eye(width, device=parent.device)
    length = 1
    while length < width:  # squaring doubles the length of the paths covered
        reach = (reach @ reach).clamp_(max=1)
        length *= 2
    return reach > 0


def depth(visible: Tensor) -> Tensor:
    """Return [B, W] int64: 1 for children of the root, from `ancestors`."""
    return visible.sum(-1)
