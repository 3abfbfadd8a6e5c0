"""Parallel drafting: a text in one copy, and masks behind some of its tokens, each of which speaks of the next place.

Source: An et al. (2025, arXiv 2504.18583). A drafter of K tokens learns K tasks: the next token of the text, and that
behind 1 to K - 1 masks. Conditional drop: of the places where one task is taught, a share is taught the next one too,
since with many masks little is left to learn; a task is dropped only where all deeper ones are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .data import MASK_ID
from .network import cut_pieces
from .objectives import DenoisingBatch

__all__ = ["parallel_canvas"]


def kept_levels(places: int, depth: int, share: float, generator: torch.Generator) -> list[list[int]]:
    """Return per level the places that keep it, ascending: each level a `share` of those of the level before.

    Args:
        places: how many there are.
        depth: levels of masks.
        share: kept from level to level, 0 to 1.
        generator: draws which.
    """
    order = torch.randperm(places, generator=generator).tolist()
    return [sorted(order[: max(1, round(places * share ** (level + 1)))]) for level in range(depth)]


def parallel_canvas(tokens: Tensor, depth: int, share: float, step: int, seed: int) -> DenoisingBatch:
    """Return `tokens` [B, T + 1] as inputs, with `depth` levels of masks, and what every output must say.

    A mask of level j behind place i stands at position i + j, sees the text up to i and the masks of its own group
    before it, and says the token at i + j + 1. All tasks of a level weigh as much together as the next token's.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    batch, size = tokens.shape[0], tokens.shape[1] - 1
    levels = kept_levels(max(1, size - depth), depth, share, generator)
    # 1 The layout: the text, then level by level the masks.
    anchor, level = list(range(size)), [0] * size
    for number, places in enumerate(levels, 1):
        anchor += places
        level += [number] * len(places)
    anchors, depths = torch.tensor(anchor), torch.tensor(level)
    total = len(anchors)
    sees_text = (depths[None, :] == 0) & (anchors[None, :] <= anchors[:, None])
    own = (anchors[:, None] == anchors[None, :]) & (depths[None, :] <= depths[:, None]) & (depths[None, :] > 0)
    # 2 What is asked: every output speaks of the token behind its position.
    target = (anchors + depths + 1).clamp(max=size)
    is_asked = anchors + depths + 1 <= size
    weight = (1 / torch.bincount(depths[is_asked], minlength=depth + 1).clamp(min=1))[depths] / batch * is_asked
    inputs = torch.cat([tokens[:, :-1], tokens.new_full((batch, total - size), MASK_ID)], 1)
    outputs = torch.arange(batch * total, device=tokens.device)
    return DenoisingBatch(
        inputs,
        outputs,
        tokens[:, target.to(tokens.device)].flatten(),
        weight.float().to(tokens.device).repeat(batch),
        pieces=cut_pieces((sees_text | own).to(tokens.device), total),
        positions=(anchors + depths).to(tokens.device),
    )
