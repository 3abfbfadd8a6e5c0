"""Decoder layers of trained drafters, and what their attention looks at: a cache, or all places of a training batch.

A network is written once: it hands queries, keys and values to a `Sight`, which knows who sees whom.
Tensors are named as in a Llama's files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.cache import Cache
from outpace.errors import ConfigError
from outpace.models.attention import additive, attend
from outpace.models.rope import make_rope, rope_settings

__all__ = ["MLP", "Layer", "Masked", "Norm", "Past", "Shape", "Sight", "Turns", "Unrolled", "shape_settings"]


class Sight(Protocol):
    """What the attention of a forward looks at.

    Attributes:
        position: [B, T] int64 places by which queries and keys are turned; -1 = padding.
        is_text: [B, T] bool, entries whose target states are known; None = those of all of them.
    """

    position: Tensor
    is_text: Tensor | None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return [B, T, H * D] of query [B, T, H, D], key and value [B, T, K, D] of a layer."""
        ...


def shape_settings(hidden: int) -> dict[str, Any]:
    """Return the settings of layers of this width that nobody chose."""
    dim = next((d for d in (64, 32, 16, 8, 4) if hidden % d == 0 and hidden >= 2 * d), 4)
    return {
        "heads": max(1, hidden // dim),
        "kv_heads": 0,
        "head_dim": dim,
        "ffn": max(16, round(hidden * 8 / 3 / 32) * 32),
        "eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {},
        "partial_rotary_factor": 1.0,
        "max_position_embeddings": 2048,
        "is_interleaved": False,
        "attention_bias": False,
        "mlp_bias": False,
        "has_head_norm": False,
    }


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a layer.

    Attributes:
        hidden: width of the residual stream.
        heads, kv_heads, head_dim, ffn, eps: as in a Llama; kv_heads 0 = as many as heads.
        attention_bias: q, k and v have biases; mlp_bias: the feed-forward layers have.
        has_head_norm: queries and keys are normalised head by head.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    eps: float
    attention_bias: bool = False
    mlp_bias: bool = False
    has_head_norm: bool = False

    @staticmethod
    def of(hidden: int, settings: Mapping[str, Any]) -> Shape:
        """Return the sizes that settings name.

        Raises:
            ConfigError: key heads that do not divide the heads, or an odd head size.
        """
        heads, dim = int(settings["heads"]), int(settings["head_dim"])
        kv_heads = int(settings["kv_heads"]) or heads
        if min(heads, dim, int(settings["ffn"])) < 1 or heads % kv_heads:
            raise ConfigError(f"A drafter of {heads} heads and {kv_heads} key heads was asked for.", "Let one divide.")
        if dim % 2:
            raise ConfigError(f"The heads of a drafter have {dim} numbers.", "Rotations need an even number.")
        flags = [bool(settings[name]) for name in ("attention_bias", "mlp_bias", "has_head_norm")]
        return Shape(hidden, heads, kv_heads, dim, int(settings["ffn"]), float(settings["eps"]), *flags)


class Norm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., size]."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Turns:
    """Rotations of queries and keys by their places, from a table that grows.

    Args:
        settings: those of `shape_settings` that speak of rotations.
        head_dim: D.
    """

    def __init__(self, settings: Mapping[str, Any], head_dim: int) -> None:
        self.rope = make_rope(rope_settings(settings), head_dim, int(settings["max_position_embeddings"]))
        self.is_interleaved = bool(settings["is_interleaved"])
        self._table = torch.zeros(0, 2, 0)

    def at(self, position: Tensor, like: Tensor) -> Tensor:
        """Return [B, T, 1, 2, R / 2], cosines and sines of places [B, T], in the dtype of `like`."""
        need, table = int(position.max()) + 1, self._table
        if need > len(table) or table.dtype != like.dtype or table.device != like.device:
            places = torch.arange(max(256, 2 * need))
            angle = places.double().unsqueeze(1) * self.rope.frequencies(places, 0)
            table = torch.stack([angle.cos(), angle.sin()], 1) * self.rope.scale
            self._table = table = table.to(like.device, like.dtype)
        return table[position.clamp(min=0)].unsqueeze(2)

    def turn(self, x: Tensor, turns: Tensor) -> Tensor:
        """Return heads [B, T, H, D] turned."""
        cos, sin = turns.unbind(-2)
        size = 2 * cos.shape[-1]
        rest, x = x[..., size:], x[..., :size]
        if self.is_interleaved:
            a, b = x[..., ::2], x[..., 1::2]
            out = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        else:
            a, b = x.chunk(2, -1)
            out = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        return torch.cat([out, rest], -1) if rest.shape[-1] else out


class Attention(nn.Module):
    """Grouped-query attention with rotary places."""

    def __init__(self, shape: Shape, inputs: int, index: int) -> None:
        super().__init__()
        self.shape, self.index = shape, index
        q, kv, bias = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.attention_bias
        self.q_proj = nn.Linear(inputs, q, bias=bias)
        self.k_proj = nn.Linear(inputs, kv, bias=bias)
        self.v_proj = nn.Linear(inputs, kv, bias=bias)
        self.o_proj = nn.Linear(q, shape.hidden, bias=False)
        if shape.has_head_norm:
            self.q_norm, self.k_norm = Norm(shape.head_dim, shape.eps), Norm(shape.head_dim, shape.eps)

    def forward(self, x: Tensor, rotation: Turns, turns: Tensor, sight: Sight, told: Tensor | None = None) -> Tensor:
        """Return [B, T, hidden]; keys and values of text entries are made of `told` [B, T, inputs] where given."""
        heads = (*x.shape[:2], -1, self.shape.head_dim)
        source = x if told is None or sight.is_text is None else torch.where(sight.is_text.unsqueeze(-1), told, x)
        query, key = self.q_proj(x).view(heads), self.k_proj(source).view(heads)
        if self.shape.has_head_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        both = rotation.turn(torch.cat([query, key], 2), turns)
        query, key = both.split([self.shape.heads, self.shape.kv_heads], 2)
        mixed = sight.attend(self.index, query, key, self.v_proj(source).view(heads))
        return self.o_proj(mixed)  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.ffn, bias=shape.mlp_bias)
        self.up_proj = nn.Linear(shape.hidden, shape.ffn, bias=shape.mlp_bias)
        self.down_proj = nn.Linear(shape.ffn, shape.hidden, bias=shape.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., hidden]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """One decoder layer.

    Args:
        shape: sizes.
        index: which layer it is to the cache.
        inputs: width of what attention reads; 0 = hidden.
        has_input_norm: what attention reads is normalised here.
    """

    input_layernorm: Norm
    hidden_norm: Norm  # of layers that read a feature beside an embedding

    def __init__(self, shape: Shape, index: int, inputs: int = 0, has_input_norm: bool = True) -> None:
        super().__init__()
        self.self_attn = Attention(shape, inputs or shape.hidden, index)
        self.mlp: nn.Module = MLP(shape)
        self.post_attention_layernorm = Norm(shape.hidden, shape.eps)
        if has_input_norm:
            self.input_layernorm = Norm(shape.hidden, shape.eps)
        self.has_input_norm = has_input_norm

    def mix(
        self,
        x: Tensor,
        rotation: Turns,
        turns: Tensor,
        sight: Sight,
        *,
        read: Tensor | None = None,
        told: Tensor | None = None,
    ) -> Tensor:
        """Return the residual sum behind attention, which reads `read` [B, T, inputs] in place of x where given."""
        if read is None:
            read = self.input_layernorm(x) if self.has_input_norm else x
        return x + self.self_attn(read, rotation, turns, sight, told)  # type: ignore[no-any-return]

    def forward(
        self,
        x: Tensor,
        rotation: Turns,
        turns: Tensor,
        sight: Sight,
        *,
        read: Tensor | None = None,
        told: Tensor | None = None,
    ) -> Tensor:
        """Return [B, T, hidden]; as `mix`, then the feed-forward layer."""
        x = self.mix(x, rotation, turns, sight, read=read, told=told)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Past:
    """Attention over a drafter's cache, in which a forward stages its entries.

    Args:
        cache: per layer a buffer of keys and one of values, [B, K, slots, D]; room has been made.
        position: [B, T].
        ahead: slots between the valid entries and those staged now.
        visible: [B, T, E] bool, entry sees slot, E = up to the last one staged; None = all of them.
        is_text: as in `Sight`.
    """

    def __init__(
        self, cache: Cache, position: Tensor, ahead: int, visible: Tensor | None, is_text: Tensor | None = None
    ) -> None:
        self.cache, self.position, self.is_text = cache, position, is_text
        self.starts = [length + ahead for length in cache.lengths]
        self.end = max(self.starts) + position.shape[1]
        self.visible, self._mask = visible, None if visible is None else visible.unsqueeze(1)
        self._additive: Tensor | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Stage keys and values, and look at what is visible."""
        keys, values = self.cache.buffers[2 * layer : 2 * layer + 2]
        size = query.shape[1]
        if min(self.starts) == max(self.starts):
            keys[:, :, self.starts[0] : self.end] = key.transpose(1, 2)
            values[:, :, self.starts[0] : self.end] = value.transpose(1, 2)
        else:
            for row, start in enumerate(self.starts):
                keys[row, :, start : start + size] = key[row].transpose(0, 1)
                values[row, :, start : start + size] = value[row].transpose(0, 1)
        if self._mask is not None and self._additive is None:
            self._additive = additive(self._mask, query)
        keys, values = keys[:, :, : self.end], values[:, :, : self.end]
        scale = query.shape[-1] ** -0.5
        return attend(query, keys, values, self._additive, False, scale, 0.0).view(*query.shape[:2], -1)


def _weighed(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Plain attention [B, T, H * D]; a query that sees nothing gets an even mixture, which nobody reads."""
    groups = query.shape[2] // key.shape[2]
    key, value = key.repeat_interleave(groups, 2).transpose(1, 2), value.repeat_interleave(groups, 2).transpose(1, 2)
    scores = query.transpose(1, 2) @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    weight = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1)
    mixed: Tensor = weight @ value
    return mixed.transpose(1, 2).flatten(2)


class Masked:
    """Attention among the entries of one forward.

    Args:
        position: [B, T].
        visible: [T, T] or [B, 1, T, T] bool, entry (row) sees entry (column).
        is_text: as in `Sight`.
    """

    def __init__(self, position: Tensor, visible: Tensor, is_text: Tensor | None = None) -> None:
        self.position, self.visible, self.is_text = position, visible, is_text

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Look at what is visible."""
        del layer
        return _weighed(query, key, value, self.visible)


class Unrolled:
    """Attention of a batch that is passed again and again, each pass over what the one before it came to.

    Pass 0 holds the text's entries, block by block. In pass j a block sees the text up to the block j before it, and
    behind that the blocks of passes 1 to j that lead to it: exactly what drafting sees j blocks ahead. All entries of
    a block see each other where it has several.

    Source: Zhang et al. (2024), arXiv 2408.15766, HASS, figure 3; Li et al. (2025), arXiv 2503.01840, EAGLE-3,
    section 3.2 (training-time test); Gao et al. (2024), arXiv 2412.12639, Falcon, figure 4 (relaxed causal mask).

    Args:
        rows, size: B and T.
        block: entries of a block.
        offset: entries before the first whole block, a block of their own.
    """

    is_text: Tensor | None = None

    def __init__(self, rows: int, size: int, device: torch.device, block: int = 1, offset: int = 0) -> None:
        self.position = torch.arange(size, device=device).expand(rows, -1)
        self.number = torch.div(torch.arange(size, device=device) - offset, block, rounding_mode="floor")
        self.step = -1
        self._held: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._visible = torch.zeros(0, 0, dtype=torch.bool, device=device)

    def advance(self) -> None:
        """Begin the next pass."""
        self.step += 1
        gap = self.number.unsqueeze(1) - self.number.unsqueeze(0)  # blocks between query and key
        parts = [gap == self.step - passed for passed in range(1, self.step + 1)]
        self._visible = torch.cat([gap >= self.step, *parts], 1)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Look at the text, and at the passes before this one."""
        held = self._held.setdefault(layer, [])
        held.append((key, value))
        keys, values = (torch.cat(parts, 1) for parts in zip(*held, strict=True))
        return _weighed(query, keys, values, self._visible)
