"""A decoder layer of a drafter's own, and drafters that read the target's states of the whole text through such layers.

Names and shapes are those of a Llama layer, as the files of most drafters have them. Positions turn by entries of the
drafter's own cache: only distances count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.cache import FIRST_SLOTS, Cache, Counter
from outpace.heads.draft import HeadDrafter, SlotDrafter
from outpace.heads.model import HeadModel
from outpace.models.layers import rms_norm
from outpace.types import Context, Outcome, View

__all__ = [
    "Attention",
    "DecoderLayer",
    "Mlp",
    "PrefixDrafter",
    "Reading",
    "RmsNorm",
    "Sight",
    "causal_sight",
    "heads_of",
    "text_cache",
]


def heads_of(size: int) -> int:
    """Return how many attention heads suit a width: of 64 numbers where that divides it, else 2 or 1."""
    return size // 64 if size % 64 == 0 else 2 if size % 4 == 0 else 1


class RmsNorm(nn.Module):
    """x over its root mean square, times a weight."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., size]."""
        return rms_norm(x, self.weight, self.eps)


class Mlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., size]."""
        mixed: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return mixed


@dataclass(frozen=True, slots=True)
class Sight:
    """Where the tokens of a forward stand, and what they see.

    Attributes:
        position: [B, T] int64.
        visible: [B, T, S] bool, token (row) sees entry (column).
        slots: [B, T] int64, where in the buffers a token's key and value go, -1 = nowhere; None = there are no
            buffers, and S = T.
    """

    position: Tensor
    visible: Tensor
    slots: Tensor | None = None


def causal_sight(tokens: Tensor) -> Sight:
    """Return the sight of whole texts [B, T]: every token sees itself and those before it."""
    rows, size = tokens.shape
    place = torch.arange(size, device=tokens.device)
    return Sight(place.expand(rows, -1), (place <= place.unsqueeze(1)).expand(rows, -1, -1))


class Attention(nn.Module):
    """Attention with turned positions over what came before.

    Args:
        size: width of what comes out.
        width: of what is read; 0 = size.
        heads: of `size // heads` numbers each; 0 = `heads_of`.
        theta: base of the rotation.
        is_kept: keys and values of the text are kept for it while decoding.
    """

    def __init__(self, size: int, width: int = 0, heads: int = 0, theta: float = 10000.0, is_kept: bool = True) -> None:
        super().__init__()
        self.size, self.heads, self.theta, self.is_kept = size, heads or heads_of(size), theta, is_kept
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width or size, size, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(size, size, bias=False)

    def turned(self, x: Tensor, position: Tensor) -> Tensor:
        """Return x [B, T, size], as queries or keys, split in heads and turned by its positions: [B, N, T, D]."""
        split = x.unflatten(-1, (self.heads, -1))
        half = split.shape[-1] // 2
        speed = self.theta ** (-torch.arange(half, device=x.device, dtype=torch.float64) / max(half, 1))
        angle = (position.unsqueeze(-1) * speed).to(x.dtype).unsqueeze(-2)
        first, second = split[..., :half], split[..., half : 2 * half]
        cos, sin = angle.cos(), angle.sin()
        parts = [first * cos - second * sin, second * cos + first * sin, split[..., 2 * half :]]
        return torch.cat(parts, -1).transpose(1, 2)

    def keys_values(self, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of tokens, [B, N, T, D] each."""
        return self.turned(self.k_proj(x), position), self.v_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    @staticmethod
    def stage(keys: Tensor, values: Tensor, sight: Sight, buffers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Put keys and values in their slots, and return all that may be seen, [B, N, S, D] each."""
        assert sight.slots is not None
        row, token = (sight.slots >= 0).nonzero(as_tuple=True)
        where = (row, sight.slots[row, token])
        for buffer, entries in zip(buffers, (keys, values), strict=True):
            buffer.transpose(1, 2).index_put_(where, entries.transpose(1, 2)[row, token])
        extent = sight.visible.shape[-1]
        return buffers[0][:, :, :extent], buffers[1][:, :, :extent]

    def look(self, x: Tensor, position: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        """Return what tokens [B, T, width] gather from keys and values [B, N, S, D] that they see, [B, T, size]."""
        query = self.turned(self.q_proj(x), position)
        seen = F.scaled_dot_product_attention(query, keys, values, attn_mask=visible.unsqueeze(1))
        out: Tensor = self.o_proj(seen.transpose(1, 2).flatten(2))
        return out

    def forward(self, x: Tensor, sight: Sight, buffers: Sequence[Tensor] = ()) -> Tensor:
        """Return [B, T, size].

        Args:
            x: [B, T, width].
            sight: where the tokens stand.
            buffers: of keys and of values, [B, N, capacity, D] each, in which theirs are staged; empty = no others.
        """
        keys, values = self.keys_values(x, sight.position)
        if sight.slots is not None:
            keys, values = self.stage(keys, values, sight, buffers)
        return self.look(x, sight.position, keys, values, sight.visible)


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        size: hidden width.
        inner: width of the mlp; 0 = 2.75 times `size`, in eights.
        heads: attention heads; 0 = `heads_of`.
        theta: base of the rotation.
        is_kept: as of `Attention`.
    """

    def __init__(self, size: int, inner: int = 0, heads: int = 0, theta: float = 10000.0, is_kept: bool = True) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RmsNorm(size), RmsNorm(size)
        self.self_attn = Attention(size, 0, heads, theta, is_kept)
        self.mlp = Mlp(size, inner or -(-size * 11 // 32) * 8)

    def quieten(self) -> None:
        """Let the layer begin as one that changes nothing."""
        nn.init.zeros_(self.self_attn.o_proj.weight)
        nn.init.zeros_(self.mlp.down_proj.weight)

    def forward(self, x: Tensor, sight: Sight, buffers: Sequence[Tensor] = ()) -> Tensor:
        """Return [B, T, size]; see `Attention.forward`."""
        x = x + self.self_attn(self.input_layernorm(x), sight, buffers)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Reading(Protocol):
    """A network that reads the target's states of a whole text before it drafts."""

    def read(self, states: Tensor, embedded: Tensor, sight: Sight, buffers: Sequence[Tensor] = ()) -> Tensor:
        """Return what became of the states, [B, T, H].

        Args:
            states: [B, T, F] of some tokens.
            embedded: [B, T, hidden] embeddings of the token after each.
            sight: where they stand.
            buffers: keys and values of the earlier tokens, two per attention; empty = there are none.
        """
        ...


@dataclass
class PrefixDrafter(SlotDrafter):
    """A `SlotDrafter` whose network reads the states of the whole text, with a cache of keys and values.

    Attributes:
        last: [B, H], what became of the states of the token before the last one, where they were read.
    """

    last: Tensor = field(kw_only=True)

    @classmethod
    def begin_with(cls, model: HeadModel, context: Context) -> PrefixDrafter:
        """Return the drafter of the joining rows."""
        rows = len(context.texts)
        cache = text_cache(model, rows, context.capacity, context.counters["draft"])
        last = torch.zeros(rows, model.net.config.hidden_size, dtype=model.dtype, device=model.device)
        return cls(model, cache, cls.features_for(model, context), last=last)

    @property
    def buffers(self) -> list[Tensor]:
        """Keys and values of the text."""
        return self.cache.buffers

    def observe(self, outcome: Outcome, view: View) -> None:
        """Keep all states until they are read."""
        HeadDrafter.observe(self, outcome, view)

    def states(self, view: View, reach: Sequence[int]) -> Tensor:
        """Read what rows that draft have not read yet; return what became of their last states, [B, H]."""
        features = self.features
        # Behind a gap the text begins anew.
        self.cache.truncate([n if whole else 0 for n, whole in zip(self.cache.lengths, features.whole, strict=True)])
        starts = list(features.starts)
        taken = features.take([row for row, ahead in enumerate(reach) if ahead])
        sizes = [len(states) for states in taken]
        if not any(sizes):
            return self.last
        # 1 Lay out ragged rows: padding sees the first entry, and goes nowhere.
        device, lengths = self.device, self.cache.lengths
        offset = torch.arange(max(sizes), device=device)
        held, size = torch.tensor([lengths, sizes], device=device).unsqueeze(-1)
        is_real, position = offset < size, held + offset
        extent = max(n + more for n, more in zip(lengths, sizes, strict=True))
        visible = torch.arange(extent, device=device) <= torch.where(is_real, position, 0).unsqueeze(-1)
        sight = Sight(position, visible, position.masked_fill(~is_real, -1))
        follow = [text[start + 1 : start + 1 + n] for text, start, n in zip(view.texts, starts, sizes, strict=True)]
        tokens = torch.tensor([row + [0] * (max(sizes) - len(row)) for row in follow], device=device)
        # 2 Read, and keep what was read.
        self.cache.reserve(extent)
        states = torch.nn.utils.rnn.pad_sequence(taken, batch_first=True)
        net: Reading = self.adapter.net  # type: ignore[assignment]
        found = net.read(states, self.adapter.embed(tokens), sight, self.buffers)
        self.cache.counter.add(len(sizes) * max(sizes), 0)
        self.cache.keep([range(n) for n in sizes])
        newest = found.gather(1, (size - 1).clamp(min=0).unsqueeze(-1).expand(-1, 1, found.shape[-1])).squeeze(1)
        self.last = torch.where(size > 0, newest, self.last)
        return self.last


def text_cache(model: HeadModel, rows: int, capacity: int, counter: Counter) -> Cache:
    """Return an empty cache for the keys and values of a network's attentions over the text."""
    attentions = [part for part in model.net.modules() if isinstance(part, Attention) and part.is_kept]
    shapes = [(rows, part.heads, min(capacity, FIRST_SLOTS), part.size // part.heads) for part in attentions]
    buffers = [torch.zeros(shape, dtype=model.dtype, device=model.device) for shape in shapes for _ in range(2)]
    return Cache(buffers, 2, counter, [0] * rows, limit=capacity)
