"""Resampling earlier tokens: a text in one copy, and windows in which a token comes after those that follow it.

Source: Gat et al. (2025), Corrector Sampling in Language Models, arXiv 2506.06215: fine-tuning on texts some windows of
which are permuted, so that a model also holds the law of a token given what stands before it and the tokens behind it.
Differences: windows hang beside a text that stays as it is, in place of taking its place, so that the next-token loss
is that of every place; a mask at a token's place asks for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .data import MASK_ID
from .network import cut_pieces
from .objectives import DenoisingBatch

__all__ = ["window_canvas"]


def window_canvas(tokens: Tensor, window: int, asked: int, step: int, seed: int) -> DenoisingBatch:
    """Return `tokens` [B, T + 1] as inputs, with `asked` windows beside them, and what every output must say.

    A window for the token at place i holds copies of 1 to `window` - 1 tokens behind it, at their own positions, and
    then a mask at position i. They see the text before place i and what stands before them in the window, never the
    token itself. All masks together weigh as much as all next tokens.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    batch, size = tokens.shape[0], tokens.shape[1] - 1
    places = (1 + torch.randperm(size - window, generator=generator)[:asked]).sort().values
    # 1 The layout: the text, then window by window the tokens behind a place, and its mask.
    behind = places[:, None] + torch.arange(1, window)  # [K, window - 1]
    positions = torch.cat([torch.arange(size), torch.cat([behind, places[:, None]], 1).flatten()])
    group = torch.cat([torch.full((size,), -1), torch.arange(len(places)).repeat_interleave(window)])
    number = torch.arange(len(positions))
    text = torch.arange(size)
    sees_text = torch.zeros(len(positions), len(positions), dtype=torch.bool)
    sees_text[:size, :size] = text[None, :] <= text[:, None]
    sees_text[size:, :size] = text[None, :] < places.repeat_interleave(window)[:, None]
    # Windows are laid out alike; of a shorter one, nobody sees the last copies.
    sizes = torch.randint(1, window, (len(places), 1), generator=generator)
    is_used = torch.cat([torch.arange(1, window) <= sizes, torch.ones(len(places), 1, dtype=torch.bool)], 1)
    is_seen = torch.cat([torch.ones(size, dtype=torch.bool), is_used.flatten()])
    own = (group[:, None] == group[None, :]) & (group[:, None] >= 0) & (number[None, :] <= number[:, None])
    own &= is_seen[None, :] | torch.eye(len(number), dtype=torch.bool)
    # 2 What is asked: the text's outputs speak of the next place, a mask's of its own; copies are asked nothing.
    copies = torch.cat([tokens[:, behind], tokens.new_full((batch, len(places), 1), MASK_ID)], 2).flatten(1)
    inputs = torch.cat([tokens[:, :-1], copies], 1)
    masks = size + window * (1 + torch.arange(len(places))) - 1
    outputs = torch.cat([text, masks])
    target = torch.cat([text + 1, places])
    weight = torch.cat([torch.full((size,), 1 / size), torch.full((len(places),), 1 / len(places))]) / (2 * batch)
    rows = len(positions) * torch.arange(batch)[:, None]
    device = tokens.device
    return DenoisingBatch(
        inputs,
        (rows + outputs).flatten().to(device),
        tokens[:, target.to(device)].flatten(),
        weight.repeat(batch).to(device),
        pieces=cut_pieces((sees_text | own).to(device), len(positions)),
        positions=positions.to(device),
    )
