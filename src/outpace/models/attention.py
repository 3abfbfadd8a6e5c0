"""Attention of T new tokens over a cache, and the masks that say who sees whom.

Masks are additive (0 or -inf), so that they can be used as they are by every kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["additive", "attend", "attend_folded", "chain_mask", "window_mask"]

# On a CPU, half precision attention of very few queries is 3-4 times slower than widening the keys and values first.
WIDENED = 4


def chain_mask(rows: int, start: int, first: int, window: int | None, like: Tensor) -> Tensor:
    """Return [rows, start + rows - first]: token i, at slot start + i, sees slots first.. up to its own."""
    query = torch.arange(start, start + rows, device=like.device)[:, None]
    key = torch.arange(first, start + rows, device=like.device)[None, :]
    is_seen = key <= query
    if window is not None:
        is_seen &= key > query - window
    return additive(is_seen, like)


def window_mask(tree: Tensor, position: Tensor, lengths: Tensor, extent: int) -> tuple[Tensor, Tensor]:
    """Lay a forward's own mask over the cache.

    Args:
        tree: [B, T, T] bool, node sees node.
        position: [B, T] logical positions.
        lengths: [B] valid entries per row.
        extent: E, slots looked at.

    Returns:
        [B, T, E] bool, node sees slot; [B, E] the logical position of each slot.
    """
    slot = torch.arange(extent, device=tree.device)[None, :]
    node = slot - lengths[:, None]  # [B, E] which node is staged at the slot
    size = tree.shape[1]
    is_staged = (node >= 0) & (node < size)
    node = node.clamp(0, size - 1)
    is_seen = tree.gather(2, node[:, None, :].expand(-1, size, -1)) & is_staged[:, None, :]
    is_seen |= (slot < lengths[:, None])[:, None, :]
    return is_seen, torch.where(is_staged, position.gather(1, node), slot)


def additive(is_seen: Tensor, like: Tensor) -> Tensor:
    """Return 0 where seen and -inf elsewhere, in the dtype and on the device of `like`."""
    mask = torch.zeros(is_seen.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(~is_seen, float("-inf"))


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float, softcap: float
) -> Tensor:
    """Return [B * T, H * D].

    Args:
        query: [B, T, H, D].
        key, value: [B, K, E, D] views of the cache.
        mask: additive, broadcast to [B, 1, T, E], or None.
        is_causal: mask a square chain without a mask tensor.
        scale: factor on products.
        softcap: cap of the products, 0 = none.
    """
    rows, size, heads, dim = query.shape
    groups = heads // key.shape[1]
    if softcap:
        return _attend_plainly(query, key, value, mask, is_causal, scale, softcap)
    if size <= WIDENED and query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16):
        mask = mask if mask is None else mask.float()
        wide = attend(query.float(), key.float(), value.float(), mask, is_causal, scale, softcap)
        return wide.to(query.dtype)
    if size == 1:  # the queries of a group become the window: no copy of keys, whatever the grouping
        folded = query.view(rows, key.shape[1], groups, dim)
        out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
        return out.reshape(rows, heads * dim)
    if groups > 1 and mask is not None and query.device.type == "cuda":
        return attend_folded(query, key, value, mask, scale)
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2), key, value, attn_mask=mask, is_causal=is_causal, scale=scale, enable_gqa=groups > 1
    )
    return out.transpose(1, 2).reshape(rows * size, heads * dim)


def attend_folded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Return what `attend` does, with the heads of a group as further queries of its key head.

    No fused CUDA kernel takes both a mask and grouped heads, and what is left would copy every key.
    """
    rows, size, heads, dim = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    folded = query.view(rows, size, kv_heads, groups, dim).permute(0, 2, 3, 1, 4).reshape(rows, kv_heads, -1, dim)
    mask = mask.unsqueeze(-3).expand(*mask.shape[:-2], groups, *mask.shape[-2:]).flatten(-3, -2)
    out = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    return out.view(rows, kv_heads, groups, size, dim).permute(0, 3, 1, 2, 4).reshape(rows * size, heads * dim)


def _attend_plainly(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float, softcap: float
) -> Tensor:
    rows, size, heads, dim = query.shape
    kv_heads, extent = key.shape[1], key.shape[2]
    if mask is None and is_causal:
        mask = chain_mask(size, extent - size, 0, None, query)
    grouped = query.view(rows, size, kv_heads, heads // kv_heads, dim).permute(0, 2, 3, 1, 4)  # [B, K, G, T, D]
    product = torch.matmul(grouped, key[:, :, None].transpose(-1, -2)) * scale
    product = torch.tanh(product / softcap) * softcap
    if mask is not None:
        product = product + (mask if mask.dim() == 2 else mask[:, :, None])
    weight = torch.softmax(product, dim=-1)  # half precisions accumulate in float32
    out = torch.matmul(weight, value[:, :, None])  # [B, K, G, T, D]
    return out.permute(0, 3, 1, 2, 4).reshape(rows * size, heads * dim)
