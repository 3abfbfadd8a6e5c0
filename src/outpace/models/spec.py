"""One transformer stack, described by its shape: everything that differs between the families.

A `Spec` holds no weights and reads no file. `outpace.models.lookup` makes one from a `config.json`,
`outpace.models.transformer` runs it. Per-layer facts are tuples of length `num_layers`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.models.mixture import Routing
from outpace.types import Capabilities

__all__ = ["Rope", "Spec", "rope_tables", "rotary_order", "spec_capabilities"]

CHOICES = {
    "norm": ("rms", "layer"),
    "norm_placement": ("pre", "post", "sandwich", "after"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
    "positions": ("rotary", "learned", "relative", "none"),
    "qk_norm": ("none", "head", "full"),
    "attention": ("causal", "full", "block", "causal-block"),
}


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotation frequencies after scaling: pair i turns by `position * inv_freq[i]`; cos and sin are times `scale`.

    Attributes:
        inv_freq: frequencies of a text within `switch` tokens, and of any text where that is 0.
        scale: factor on cos and sin.
        switch: longer texts turn otherwise; 0 = all turn alike.
        long: frequencies of every position of a longer text (long-rope); it is read anew with them.
        base, factor: without `long`, what grows with the text instead (dynamic NTK): see `grown`.
    """

    inv_freq: tuple[float, ...]
    scale: float = 1.0
    switch: int = 0
    long: tuple[float, ...] = ()
    base: float = 0.0
    factor: float = 1.0

    def frequencies(self, position: Tensor, phase: int) -> Tensor:
        """Return [P, rotary_dim / 2] float64 frequencies at positions [P].

        Args:
            position: int64.
            phase: 0, or of a text whose prompt was longer than `switch`: 1 under long-rope, else the prompt's length.
        """
        if self.long or not self.switch:
            chosen = self.long if phase and self.long else self.inv_freq
            return torch.tensor(chosen, dtype=torch.float64).expand(len(position), -1)
        # Dynamic NTK, as transformers generates: a prompt turns by its length, a written token by the text so far.
        length = torch.clamp(position.double() + 1, min=max(phase, self.switch))[:, None]
        dim = 2 * len(self.inv_freq)
        base = self.base * (self.factor * length / self.switch - (self.factor - 1)) ** (dim / (dim - 2))
        return base ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What a decoder computes.

    Attributes:
        vocab_size: V, rows of the embedding and of the head.
        hidden_size: width of the residual stream.
        num_layers: L.
        num_heads: H, query heads.
        num_kv_heads: K, key and value heads; H is a multiple of K.
        head_dim: D.
        ffn_size: width inside the MLP.
        max_positions: context length in tokens.
        embed_size: width of the embedding when it differs from `hidden_size` (OPT 350m), else 0.
        norm: "rms" or "layer" (mean removed, with bias).
        norm_eps: epsilon of every norm.
        norm_offset: added to every RMS weight (Gemma: 1.0).
        has_norm_bias: layer norms carry a bias.
        norm_placement: "pre" x + f(norm(x)); "post" x + norm(f(x)) (OLMo2); "sandwich" x + norm(f(norm(x)))
            (Gemma 2, 3); "after" norm(x + f(x)) (OPT 350m).
        has_final_norm: a norm before the head.
        is_parallel: attention and MLP both read the layer's input (GPT-NeoX); otherwise one after the other.
        activation: "silu", "gelu", "gelu_tanh" or "relu".
        is_gated: MLP = down(act(gate(x)) * up(x)); otherwise down(act(up(x))).
        positions: "rotary", "learned" (added to the embedding; computed tables are held like learned ones), "relative"
            (a number per head and distance, added to query-key products, T5) or "none".
        position_offset: added to a position before the learned table is read (OPT: 2).
        relative_buckets: numbers per head that the files hold for "relative" positions.
        relative_distance: distances from this one on share a number; see `LayerWeights.relative`.
        rotary_dim: leading dimensions of each head that turn; the rest pass. Rotation pairs dimension i with
            i + rotary_dim / 2, the half-split convention of Hugging Face weights.
        ropes: the frequency sets that layers use (Gemma 3 has two).
        rope_index: per layer, which of `ropes` it uses; -1 = none (SmolLM3's NoPE layers).
        windows: per layer, how many latest positions it sees, itself included; None = all.
        qkv_bias, o_bias, mlp_bias, head_bias: whether those projections carry a bias.
        qk_norm: "none", "head" (over each head, Qwen3, Gemma 3) or "full" (over the whole projection, OLMo2).
        attn_scale: factor on query-key products.
        query_growth: a query at position p is times 1 + growth * log(1 + p // period) (Ministral 3); 0 = none is.
        query_period: positions after which queries grow.
        attn_softcap: products become cap * tanh(product / cap); 0 = off.
        final_softcap: the same for logits.
        embed_scale: factor on embedded tokens (Gemma: sqrt(hidden_size)).
        tie_embeddings: the head is the embedding.
        head_scale: factor on the last hidden state before the head (T5: hidden_size ** -0.5).
        has_embed_norm: a norm over the embeddings, positions added (BART).
        has_cross: each layer looks at an encoder's states between its attention and its MLP.
        attention: "causal", "full", "block" (all of one's block of `block_size` positions and all before it), or
            "causal-block" (causal, but for a last block of up to `block_size` positions, which the caller says with a
            mask: it sees all of itself and all before it).
        block_size: positions per block of "block" and "causal-block".
        mask_id: the mask token of a masked model, else None.
        routing: the layers behind its `dense` ones have a mixture of experts in place of the MLP; None = none has.
        logits_shift: a masked model whose output at i speaks of token i + 1 (Dream); False = of token i.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    max_positions: int
    embed_size: int = 0
    norm: str = "rms"
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    has_norm_bias: bool = False
    norm_placement: str = "pre"
    has_final_norm: bool = True
    is_parallel: bool = False
    activation: str = "silu"
    is_gated: bool = True
    positions: str = "rotary"
    position_offset: int = 0
    rotary_dim: int = 0
    ropes: tuple[Rope, ...] = ()
    rope_index: tuple[int, ...] = ()
    windows: tuple[int | None, ...] = ()
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    qk_norm: str = "none"
    attn_scale: float = 0.0
    query_growth: float = 0.0
    query_period: int = 0
    attn_softcap: float = 0.0
    final_softcap: float = 0.0
    embed_scale: float = 1.0
    tie_embeddings: bool = False
    head_scale: float = 1.0
    has_embed_norm: bool = False
    has_cross: bool = False
    relative_buckets: int = 0
    relative_distance: int = 0
    attention: str = "causal"
    block_size: int = 0
    mask_id: int | None = None
    logits_shift: bool = False
    routing: Routing | None = None

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ModelError(f"{name} is {getattr(self, name)!r}, not one of {', '.join(allowed)}.")
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "ffn_size"):
            if getattr(self, name) <= 0:
                raise ModelError(f"{name} is {getattr(self, name)}; it has to be positive.")
        if self.num_heads % self.num_kv_heads:
            raise ModelError(f"{self.num_heads} query heads cannot share {self.num_kv_heads} key heads evenly.")
        if (self.attention in ("block", "causal-block")) != (self.block_size > 0):
            raise ModelError(f"Attention is {self.attention} and block_size {self.block_size}.")
        if (self.query_growth != 0) != (self.query_period > 0):
            raise ModelError(f"Queries grow by {self.query_growth} every {self.query_period} positions.")
        if (self.positions == "relative") != (min(self.relative_buckets, self.relative_distance) > 0):
            raise ModelError(
                f"Positions are {self.positions}, with {self.relative_buckets} buckets for distances up to "
                f"{self.relative_distance}."
            )
        if self.has_cross and (self.is_parallel or self.norm_placement not in ("pre", "after")):
            raise ModelError("Layers of this form do not look at an encoder.")
        fill = object.__setattr__  # frozen: defaults that depend on other fields are filled once, here
        if not self.windows:
            fill(self, "windows", (None,) * self.num_layers)
        if not self.rope_index:
            fill(self, "rope_index", (0 if self.positions == "rotary" else -1,) * self.num_layers)
        if not self.attn_scale:
            fill(self, "attn_scale", self.head_dim**-0.5)
        if self.positions == "rotary" and not self.rotary_dim:
            fill(self, "rotary_dim", self.head_dim)
        self._check_layers()

    def _check_layers(self) -> None:
        if self.routing is not None and not (self.is_gated and self.activation == "silu" and not self.mlp_bias):
            raise ModelError("Experts of another form than gated SiLU without biases are not known here.")
        for name in ("windows", "rope_index"):
            if len(getattr(self, name)) != self.num_layers:
                raise ModelError(f"{name} has {len(getattr(self, name))} entries for {self.num_layers} layers.")
        if max(self.rope_index, default=-1) >= len(self.ropes):
            raise ModelError("A layer names rotation frequencies that the model does not have.")
        if any(2 * len(rope.inv_freq) != self.rotary_dim for rope in self.ropes):
            raise ModelError(f"Rotation frequencies do not fill the {self.rotary_dim} rotary dimensions of a head.")

    @property
    def turns_at(self) -> int:
        """The longest text before rotations change, 0 = they never do."""
        return max((rope.switch for rope in self.ropes), default=0)

    @property
    def turns_anew(self) -> bool:
        """Whether a longer text is read anew, with other frequencies from its beginning on."""
        return any(rope.long for rope in self.ropes)

    @property
    def q_size(self) -> int:
        """Rows of the query projection, H * D."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of the key projection (and of the value projection), K * D."""
        return self.num_kv_heads * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Parameters in the matrices of all layers."""
        attention = self.hidden_size * (2 * self.q_size + 2 * self.kv_size) * (2 if self.has_cross else 1)
        mlp = self.hidden_size * self.ffn_size * (3 if self.is_gated else 2)
        if self.routing is None:
            return self.num_layers * (attention + mlp)
        routing = self.routing
        inside = routing.experts * (3 * routing.ffn_size + 1) + 3 * routing.shared_size
        mixed = (self.num_layers - routing.dense) * self.hidden_size * inside
        return self.num_layers * attention + routing.dense * mlp + mixed

    @property
    def num_weights(self) -> int:
        """Parameters in matrices (norms and biases left out), a tied head counted once."""
        embed = self.vocab_size * (self.embed_size or self.hidden_size)
        return self.layer_weights + embed * (1 if self.tie_embeddings else 2)


def spec_capabilities(spec: Spec) -> Capabilities:
    """Return what a native decoder of this shape offers."""
    return Capabilities(
        vocab_size=spec.vocab_size,
        max_positions=spec.max_positions,
        attention=spec.attention,
        block_size=spec.block_size,
        logits_shift=spec.logits_shift,
        has_skip=True,
        num_layers=spec.num_layers,
        mask_id=spec.mask_id,
        turns_at=spec.turns_at,
        turns_anew=spec.turns_anew,
        has_hidden=True,
        is_encoder_decoder=spec.has_cross,
    )


def rope_tables(
    spec: Spec, rope: Rope, dtype: torch.dtype, device: torch.device | str, length: int = 0, phase: int = 0
) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each [length or max_positions, head_dim], computed in float64 and rounded once.

    The tables cover a whole head in the layout that `Transformer` holds its query and key rows in (see
    `rotary_order`): rotating partner = dimension +- head_dim / 2, sin negative in the lower half, and dimensions that
    do not turn have cos 1 and sin 0. So `x * cos + roll(x, head_dim // 2) * sin` rotates, whatever `rotary_dim` is.
    """
    steps = torch.arange(length or spec.max_positions)
    angle = steps[:, None].double() * rope.frequencies(steps, phase)  # [P, rotary_dim / 2]
    still = (spec.head_dim - spec.rotary_dim) // 2
    cos = torch.nn.functional.pad(angle.cos() * rope.scale, (0, still), value=1.0)
    sin = torch.nn.functional.pad(angle.sin() * rope.scale, (0, still), value=0.0)
    cos, sin = torch.cat([cos, cos], dim=1), torch.cat([-sin, sin], dim=1)
    return cos.to(device, dtype), sin.to(device, dtype)


def rotary_order(spec: Spec) -> list[int]:
    """Return the order of a head's dimensions in memory: [turning low, still low, turning high, still high].

    Identity when every dimension turns. Queries and keys are permuted alike when a model is loaded, which leaves
    their products unchanged and makes partial rotation as cheap as full rotation.
    """
    half, still = spec.rotary_dim // 2, (spec.head_dim - spec.rotary_dim) // 2
    low, high = range(half), range(half, 2 * half)
    rest = range(spec.rotary_dim, spec.head_dim)
    return [*low, *rest[:still], *high, *rest[still:]]
