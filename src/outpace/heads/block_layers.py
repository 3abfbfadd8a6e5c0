"""The layers of block drafters: attention over features and places, a gated feed-forward, dynamic convolutions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BlockAttention", "Layer", "PlaceConv", "RMSNorm", "rope_table", "rotate"]


def rope_table(length: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Return cosines and sines, [length, 2, head_dim] float32; the halves repeat (the convention of Hugging Face)."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    angle = torch.outer(torch.arange(length, dtype=torch.float32, device=device), theta**-exponent)
    angle = torch.cat([angle, angle], -1)
    return torch.stack([angle.cos(), angle.sin()], 1)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn heads [..., T, h, d] by the table's rows of their positions, [..., T, 2, d]."""
    first, second = x.chunk(2, -1)
    return x * turn[..., :1, :] + torch.cat([-second, first], -1) * turn[..., 1:, :]


class RMSNorm(nn.Module):
    """Root-mean-square normalisation; its scale takes the input's dtype, under autocast too."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., size]."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class BlockAttention(nn.Module):
    """Grouped-query attention of places over features and places; tensors named as in the original files."""

    def __init__(self, size: int, own: Mapping[str, Any]) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = own["heads"], own["kv_heads"], own["head_dim"]
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = nn.Linear(size, wide, bias=own["bias"])
        self.k_proj = nn.Linear(size, narrow, bias=own["bias"])
        self.v_proj = nn.Linear(size, narrow, bias=own["bias"])
        self.o_proj = nn.Linear(wide, size, bias=own["bias"])
        self.has_norm = own["qk_norm"]
        if self.has_norm:
            self.q_norm = RMSNorm(self.head_dim, eps=own["eps"])
            self.k_norm = RMSNorm(self.head_dim, eps=own["eps"])

    def query(self, x: Tensor, turn: Tensor) -> Tensor:
        """Return turned queries [..., T, heads, d] of [..., T, H]."""
        found = self.q_proj(x).unflatten(-1, (self.heads, self.head_dim))
        return rotate(self.q_norm(found) if self.has_norm else found, turn)

    def key_value(self, x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """Return turned keys and values [..., T, kv_heads, d] of [..., T, H]."""
        key = self.k_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
        value = self.v_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
        return rotate(self.k_norm(key) if self.has_norm else key, turn), value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, sees: Tensor | None) -> Tensor:
        """Return [B, S, heads x d] of queries [B, S, heads, d], keys and values [B, E, kv_heads, d].

        Args:
            query, key, value: as above.
            sees: [B, S, E] bool; None = everything.
        """
        rows, places = query.shape[:2]
        groups = self.heads // self.kv_heads
        asked = query.view(rows, places, self.kv_heads, groups, self.head_dim).permute(0, 2, 3, 1, 4)
        asked = asked.reshape(rows, self.kv_heads, groups * places, self.head_dim)
        scores = (asked @ key.permute(0, 2, 3, 1)) * self.head_dim**-0.5
        if sees is not None:
            scores = scores.view(rows, self.kv_heads, groups, places, -1)
            scores = scores.masked_fill(~sees[:, None, None], float("-inf")).flatten(2, 3)
        found = scores.softmax(-1) @ value.transpose(1, 2)
        found = found.view(rows, self.kv_heads, groups, places, self.head_dim)
        return found.permute(0, 3, 1, 2, 4).reshape(rows, places, -1)  # type: ignore[no-any-return]

    def blocks(
        self, x: Tensor, feature: Tensor, table: Tensor, position: Tensor, sees: Tensor, inside: Tensor
    ) -> Tensor:
        """Return what many blocks of a text find, for training, [B, A, S, heads x d].

        Args:
            x: [B, A, S, H] normed places.
            feature: [B, T, H] of the texts; their keys and values are made once for all blocks.
            table: the rotary table.
            position: [B, A, S] int64 of the places.
            sees: [B, A, S, T] bool, which features a place sees.
            inside: [S, S] bool, which places of its block.
        """
        rows, count, places = position.shape
        groups = self.heads // self.kv_heads
        turn = table[position]
        query = self.query(x, turn).unflatten(-2, (self.kv_heads, groups)) * self.head_dim**-0.5
        key, value = self.key_value(x, turn)
        old_key, old_value = self.key_value(feature, table[: feature.shape[1]])
        # One product per text and head for the features, one per block for its own places; one softmax over both.
        flat = query.permute(0, 3, 4, 1, 2, 5).reshape(rows, self.kv_heads, -1, self.head_dim)
        far = (flat @ old_key.permute(0, 2, 3, 1)).view(rows, self.kv_heads, groups, count, places, -1)
        near = torch.einsum("basgid,batgd->bgiast", query, key)
        far = far.masked_fill(~sees[:, None, None], float("-inf"))
        near = near.masked_fill(~inside, float("-inf"))
        share = torch.cat([far, near], -1).softmax(-1)
        far, near = share.split([feature.shape[1], places], -1)
        found = far.reshape(rows, self.kv_heads, -1, feature.shape[1]) @ old_value.transpose(1, 2)
        found = found.view(rows, self.kv_heads, groups, count, places, self.head_dim)
        found = found + torch.einsum("bgiast,batgd->bgiasd", near, value)
        return found.permute(0, 3, 4, 1, 2, 5).reshape(rows, count, places, -1)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """down(SiLU(gate x) * up x)."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, width, bias=False)
        self.up_proj = nn.Linear(size, width, bias=False)
        self.down_proj = nn.Linear(width, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., H]."""
        found: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return found


class PlaceConv(nn.Module):
    """Convolution over the places of a block, with kernels that depend on the input; DFlash2's.

    y_i = sum over t of (base[side, t] + delta[i, side, t, group]) x_(i - t); side 0 is for what enters a sublayer, side
    1 for what leaves it, with the same delta. Begun as the identity.
    """

    def __init__(self, size: int, taps: int, group: int) -> None:
        super().__init__()
        self.taps, self.group = taps, group
        base = torch.zeros(2, taps, size)
        base[:, 0] = 1
        self.base_kernel = nn.Parameter(base)
        self.kernel_projection = nn.Linear(size, 2 * taps * size // group, bias=False)
        nn.init.zeros_(self.kernel_projection.weight)

    def kernels(self, x: Tensor) -> Tensor:
        """Return the kernels [..., S, 2, taps, H] that what enters a sublayer [..., S, H] asks for."""
        delta = self.kernel_projection(x).unflatten(-1, (2, self.taps, -1))
        return self.base_kernel + delta.repeat_interleave(self.group, -1)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, kernels: Tensor, side: int) -> Tensor:
        """Return [..., S, H]."""
        moved = [F.pad(x, (0, 0, tap, 0))[..., : x.shape[-2], :] for tap in range(self.taps)]
        return (torch.stack(moved, -2) * kernels[..., side, :, :]).sum(-2)


class Layer(nn.Module):
    """A layer of the body; `attend` is given, so that training and drafting share all the rest."""

    def __init__(self, size: int, own: Mapping[str, Any]) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(size, eps=own["eps"])
        self.self_attn = BlockAttention(size, own)
        self.post_attention_layernorm = RMSNorm(size, eps=own["eps"])
        self.mlp = FeedForward(size, own["ffn"])
        self.has_conv = "conv_taps" in own
        if self.has_conv:
            self.attention_conv = PlaceConv(size, own["conv_taps"], own["conv_group"])
            self.mlp_conv = PlaceConv(size, own["conv_taps"], own["conv_group"])

    def forward(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """Return [..., S, H]."""
        o_proj = self.self_attn.o_proj
        if not self.has_conv:
            x = x + o_proj(attend(self.input_layernorm(x)))
            return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]
        x = x + _around(self.attention_conv, self.input_layernorm(x), lambda y: o_proj(attend(y)))
        return x + _around(self.mlp_conv, self.post_attention_layernorm(x), self.mlp)


def _around(conv: PlaceConv, x: Tensor, inner: Callable[[Tensor], Tensor]) -> Tensor:
    kernels = conv.kernels(x)
    found: Tensor = conv(inner(conv(x, kernels, 0)), kernels, 1)
    return found
