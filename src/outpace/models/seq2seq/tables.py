"""Position tables that are computed rather than learned, as transformers computes them, bit for bit.

All of them are rounded to float32 on the way, whatever the model's dtype: the bias of a distance and the wave of a
position would otherwise differ from those that a model was trained with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["expand_relative", "interleaved_waves", "relative_bucket", "stacked_waves"]


def stacked_waves(positions: int, dim: int) -> Tensor:
    """Return [positions, dim] float32 of Marian and PEGASUS: sines in the first half, cosines in the second.

    The frequency of pair j is 10000 ** (-2j / dim), section 3.5 of arXiv 1706.03762.
    """
    pair = torch.arange(dim, dtype=torch.float64) // 2
    angle = torch.arange(positions, dtype=torch.float64)[:, None] / 10000.0 ** (2 * pair / dim)
    return torch.cat([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=1).float()


def interleaved_waves(positions: int, dim: int, padding: int | None) -> Tensor:
    """Return [positions, dim] float32 of M2M100: as tensor2tensor has them, computed in float32 throughout.

    The frequency of pair j is 10000 ** (-j / (dim / 2 - 1)); the row of the padding token is zero.
    """
    half = dim // 2
    rate = torch.exp(torch.arange(half, dtype=torch.int64).float() * -(math.log(10000) / (half - 1)))
    angle = torch.arange(positions, dtype=torch.int64).float()[:, None] * rate
    table = torch.cat([angle.sin(), angle.cos()], dim=1)
    table = torch.nn.functional.pad(table, (0, dim % 2))
    if padding is not None:
        table[padding] = 0
    return table


def relative_bucket(distance: Tensor, buckets: int, reach: int, is_causal: bool) -> Tensor:
    """Return the bucket of each distance, key position minus query position (section 2.1 of arXiv 1910.10683).

    Args:
        distance: [...] int64.
        buckets: how many there are; a bidirectional model has half of them for each direction.
        reach: distances from this one on share the last bucket of their direction.
        is_causal: keys behind the query are never seen and count as distance 0.
    """
    first = torch.zeros_like(distance)
    if is_causal:
        far = (-distance).clamp(min=0)
    else:
        buckets //= 2
        first, far = (distance > 0).long() * buckets, distance.abs()
    exact = buckets // 2
    # Half of the buckets hold one distance each; the other half grow by a constant factor, up to `reach`.
    wide = torch.log(far.float() / exact) / math.log(reach / exact) * (buckets - exact)
    wide = (exact + wide.clamp(min=0).long()).clamp(max=buckets - 1)
    return first + torch.where(far < exact, far, wide)


def expand_relative(table: Tensor, reach: int, is_causal: bool) -> Tensor:
    """Return [2 * reach + 1, H], what `LayerWeights.relative` holds, of a table [buckets, H] in a file.

    Row reach + d is that of a key d positions before its query.
    """
    distance = -torch.arange(-reach, reach + 1)
    return table[relative_bucket(distance, table.shape[0], reach, is_causal).to(table.device)].contiguous()
