"""A small Llama for training: causal or full attention, tied embeddings, parameter names of Hugging Face.

The names are those of `transformers.LlamaForCausalLM`, so that a state dict is exported without any renaming.
Generation has its own, faster model layer; this one only trains and scores whole sequences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.models.codebooks import summed_codes


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """Sizes of a Llama-shaped network.

    Attributes:
        hidden: Width of the residual stream.
        layers: Number of transformer layers.
        heads: Number of query heads.
        kv_heads: Number of key and value heads; divides `heads`.
        head_dim: Size of one head.
        ffn: Width of the gated feed-forward layer.
        vocab: Number of tokens, special ones included.
        context: Largest position count the model is meant for, in tokens.
        rope_theta: Base of the rotary frequencies.
        eps: Added to the mean square inside RMSNorm.
        causal: Whether position i sees only positions up to i (else what the caller lets it see, by default all).
        block: Length of a block where positions see all of their own block and of earlier ones; 0 for no blocks.
        shifted: Whether row i of a network that is not causal still speaks of token i + 1, as it did in its parent.
        rotary: Whether queries and keys turn with their positions; else causal attention alone tells what came first.
        codes: Codes of the codebook behind each feed-forward layer; 0 = there are none.
        chosen: How many of them are summed.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int = 8192
    context: int = 1024
    rope_theta: float = 10000.0
    eps: float = 1e-5
    causal: bool = True
    block: int = 0
    shifted: bool = False
    rotary: bool = True
    codes: int = 0
    chosen: int = 0


Past = list[Tensor]  # keys and values of one layer, [B, H, T, D] each, growing as tokens come; empty at first


class Sight(NamedTuple):
    """What a run of positions may look at.

    Attributes:
        start: First position.
        stop: First position after it.
        ranges: Positions that any of them sees, as (first, first after), C positions in all.
        visible: bool [stop - start, C], true where row may look at column.
    """

    start: int
    stop: int
    ranges: tuple[tuple[int, int], ...]
    visible: Tensor


def cut_pieces(visible: Tensor, size: int = 64) -> tuple[Sight, ...]:
    """Cut bool `visible` [T, T] into runs of `size` rows; columns that a run does not see cost nothing then."""
    pieces = []
    for start in range(0, len(visible), size):
        rows = visible[start : start + size]
        seen = rows.any(0).tolist()
        edges = [place for place in range(len(seen) + 1) if [False, *seen][place] != [*seen, False][place]]
        ranges = tuple(zip(edges[::2], edges[1::2], strict=True))
        pieces.append(Sight(start, start + len(rows), ranges, torch.cat([rows[:, a:b] for a, b in ranges], dim=1)))
    return tuple(pieces)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learned scale."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `x`."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rope_tables(shape: LlamaShape, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding at int64 `positions` [T], each float32 [T, head_dim]."""
    exponents = torch.arange(0, shape.head_dim, 2, device=positions.device, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(positions.float(), shape.rope_theta**-exponents)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads `x` [B, H, T, D] by their positions (halves convention of Hugging Face)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
    """Softmax attention of [B, H, T, D] over [B, H, S, D], where bool `visible` [T, S] allows it."""
    # Written out, because the backward pass of the fused kernel takes twice as long on a CPU.
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    mixed: Tensor = scores.softmax(-1) @ value
    return mixed


def _take(x: Tensor, ranges: tuple[tuple[int, int], ...]) -> Tensor:
    return torch.cat([x[:, :, start:stop] for start, stop in ranges], dim=2)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.shape = shape
        kv_size = shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, kv_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden, kv_size, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: Past | None = None, pieces: tuple[Sight, ...] | None = None
    ) -> Tensor:
        """Mix positions of `x` [B, T, hidden]; with `past`, also look at (and add to) what came before."""
        batch, length, _ = x.shape
        heads = (batch, length, -1, self.shape.head_dim)
        query, key = (part(x).view(heads).transpose(1, 2) for part in (self.q_proj, self.k_proj))
        if self.shape.rotary:
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        value = self.v_proj(x).view(heads).transpose(1, 2)
        if past is not None:
            past[:] = (
                [torch.cat(pair, dim=2) for pair in zip(past, (key, value), strict=True)] if past else (key, value)
            )
            key, value = past
        # Repeating keys by hand keeps the fast CPU kernel, which knows no grouped queries.
        groups = self.shape.heads // self.shape.kv_heads
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        if pieces is not None:
            parts = [
                attend(query[:, :, start:stop], _take(key, ranges), _take(value, ranges), visible)
                for start, stop, ranges, visible in pieces
            ]
            mixed = torch.cat(parts, dim=2)
        elif self.shape.causal:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=length > 1)
        else:
            mixed = attend(query, key, value)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU feed-forward layer."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.down_proj = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position of `x` [B, T, hidden] by itself."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class CodedFeedForward(FeedForward):
    """A feed-forward layer that says the sum of a few codes; see `outpace.models.codebooks`.

    Attributes:
        codes: [C, hidden].
        gap: Mean square of what the codes miss, over that of what the layer says; of the last call.
    """

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__(shape)
        self.chosen = shape.chosen
        self.codes = nn.Parameter(torch.zeros(shape.codes, shape.hidden))
        self.gap = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position of `x` [B, T, hidden] by itself; gradients pass the choice as if it were none."""
        said = super().forward(x)
        codes = self.codes.to(said.dtype)
        found = summed_codes(said.detach(), codes, self.chosen)
        self.gap = (found.float() - said.detach().float()).square().mean() / said.detach().float().square().mean()
        return found + (said - said.detach())


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.mlp = CodedFeedForward(shape) if shape.codes else FeedForward(shape)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: Past | None = None, pieces: tuple[Sight, ...] | None = None
    ) -> Tensor:
        """Residual stream in, residual stream out, both [B, T, hidden]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, past, pieces)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Body(nn.Module):
    """Embedding, layers and the last norm (named as in Hugging Face checkpoints)."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.eps)


class Llama(nn.Module):
    """A Llama-shaped language model with tied embeddings.

    Args:
        shape: The sizes.
        seed: Seed of the initial weights.
    """

    def __init__(self, shape: LlamaShape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        # Outputs that add to the residual stream start smaller, so that its size does not grow with depth.
        shrink = (2 * self.shape.layers) ** -0.5
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                scale = 0.02 * (shrink if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0)
                nn.init.normal_(weight, std=scale, generator=generator)

    def hidden(
        self,
        tokens: Tensor,
        past: list[Past] | None = None,
        pieces: tuple[Sight, ...] | None = None,
        positions: Tensor | None = None,
        inputs: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, T, hidden] of int64 `tokens` [B, T], which follow those in `past`.

        With a filled `past` only one token at a time is taken. `pieces` takes the place of the shape's own rule of who
        sees whom, and int64 `positions` [T] that of counting from `past` on;
        `inputs` [B, T, hidden] that of the tokens' embeddings.
        """
        x = self.model.embed_tokens(tokens) if inputs is None else inputs
        if torch.is_autocast_enabled(tokens.device.type):
            x = x.to(torch.get_autocast_dtype(tokens.device.type))
        start = past[0][0].shape[2] if past and past[0] else 0
        if positions is None:
            positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        cos, sin = (table.to(x.dtype) for table in rope_tables(self.shape, positions))
        for index, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, past[index] if past else None, pieces)
        return self.model.norm(x)  # type: ignore[no-any-return]

    def exit_states(self, tokens: Tensor, exits: Sequence[int]) -> list[Tensor]:
        """What the head reads [B, T, hidden] of int64 `tokens` [B, T] when the network is left after so many layers."""
        x, found = self.model.embed_tokens(tokens), []
        if torch.is_autocast_enabled(tokens.device.type):
            x = x.to(torch.get_autocast_dtype(tokens.device.type))
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        cos, sin = (table.to(x.dtype) for table in rope_tables(self.shape, positions))
        for index, layer in enumerate(self.model.layers[: exits[-1]], 1):
            x = layer(x, cos, sin)
            if index in exits:
                found.append(self.model.norm(x))
        return found

    def project(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab] of hidden states [..., hidden]."""
        return F.linear(hidden, self.model.embed_tokens.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, vocab] of int64 `tokens` [B, T]; row i speaks of token i + 1 when causal or shifted."""
        return self.project(self.hidden(tokens))


_KEYS = {
    "vocab_size": "vocab",
    "hidden_size": "hidden",
    "intermediate_size": "ffn",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "context",
    "rms_norm_eps": "eps",
    "rope_theta": "rope_theta",
}


def hf_config(shape: LlamaShape, *, eos_id: int, mask_id: int) -> dict[str, Any]:
    """The `config.json` of a network of this shape, in the layout of Hugging Face.

    A full-attention network gets our own `model_type`, because no class of transformers computes it.
    """
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{key: getattr(shape, name) for key, name in _KEYS.items()},
        "hidden_act": "silu",
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
        "use_cache": True,
        "torch_dtype": "bfloat16",
    }
    if not shape.causal:
        config |= {
            "architectures": ["OutpaceMaskedLlama"],
            "model_type": "outpace_masked_llama",
            "mask_token_id": mask_id,
            "attention": "block" if shape.block else "full",
            "logits_shift": shape.shifted,
            "use_cache": False,
        }
    if shape.block:
        config["block_length"] = shape.block
    if shape.codes:
        config |= {"architectures": ["OutpaceCodebookLlama"], "model_type": "outpace_codebook_llama"}
        config["codebooks"] = {"size": shape.codes, "chosen": shape.chosen}
    if not shape.rotary:  # the published layout whose layers may each leave rotation out
        config |= {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3"}
        config |= {"no_rope_layers": [0] * shape.layers, "use_sliding_window": False}
    return config


def shape_of(config: Mapping[str, Any]) -> LlamaShape:
    """Return the shape that `hf_config` wrote."""
    return LlamaShape(
        **{name: config[key] for key, name in _KEYS.items()},
        causal="masked" not in config["model_type"],
        block=config.get("block_length", 0),
        shifted=config.get("logits_shift", False),
        rotary=config["model_type"] != "smollm3",
        codes=config.get("codebooks", {}).get("size", 0),
        chosen=config.get("codebooks", {}).get("chosen", 0),
    )
