"""The target while a drafter is trained: its weights rest, and gradients pass through to what it is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from outpace.errors import CapabilityError
from outpace.models.layers import activate, rms_norm
from outpace.models.spec import Spec, rope_tables
from outpace.models.transformer import Transformer
from outpace.models.weights import LayerWeights, Norm
from outpace.types import Adapter

__all__ = ["FrozenHead", "FrozenTarget", "freeze"]


def freeze(target: Adapter, ids: Tensor | None = None) -> FrozenTarget | FrozenHead:
    """Return the target as a drafter is trained beside it.

    Raises:
        CapabilityError: its matrices are not at hand.
    """
    return FrozenHead(target, ids) if target.capabilities.is_encoder_decoder else FrozenTarget(target, ids)


class FrozenHead:
    """An encoder-decoder's embeddings and output matrix, for kinds that read its states and need no layer of it.

    Whoever runs it, the matrix is read off what the adapter answers: its head is a matrix and a bias.

    Args:
        target: the model.
        ids: [K] int64, ascending, the tokens that can be drafted; None = all.
        dtype: of the matrix; products are rounded to it.

    Raises:
        CapabilityError: the head does more than multiply and add.
    """

    def __init__(self, target: Adapter, ids: Tensor | None = None, dtype: torch.dtype = torch.bfloat16) -> None:
        self.ids, self.device, self._target, self._dtype = ids, target.device, target, dtype
        width = target.embed(torch.zeros(1, 1, dtype=torch.int64, device=target.device)).shape[-1]
        unit = torch.eye(width, dtype=target.dtype, device=target.device)
        probe = torch.linspace(-3, 3, width, dtype=target.dtype, device=target.device)[None]
        bias = target.head(torch.zeros_like(unit[:1]))[0].float()
        head = target.head(unit).float() - bias
        wanted = target.head(probe)[0].float()
        if (probe[0].float() @ head + bias - wanted).abs().max() > 0.05 * wanted.abs().max():
            raise CapabilityError(
                "The model's logits are not a matrix times its last state.", "Use an encoder-decoder with a plain head."
            )
        chosen = slice(None) if ids is None else ids
        self._head, self._bias = head.T[chosen].to(dtype).clone(), bias[chosen].clone()

    def embed(self, tokens: Tensor) -> Tensor:
        """Return float32 embeddings [..., hidden] of tokens [...]."""
        with torch.no_grad():
            flat = self._target.embed(tokens.reshape(1, -1))
        return flat.float().clone().view(*tokens.shape, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the target's logits [..., K] of last hidden states [..., hidden], of tokens that can be drafted."""
        return F.linear(hidden.to(self._dtype), self._head) + self._bias

    def forward(
        self,
        inputs: Tensor,
        position: Tensor,
        visible: Tensor,
        states: Tensor | None = None,
        first: int = 0,
        hook: Any = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Refuse.

        Raises:
            CapabilityError: always; the layers of an encoder-decoder are not written out for training.
        """
        raise CapabilityError(
            "This kind of drafter is trained through the target's layers, which an encoder-decoder does not lend.",
            "Use a kind that reads hidden states alone, such as medusa or blockwise.",
        )


class FrozenTarget:
    """A native decoder's matrices in torch (`outpace.heads.net.Frozen`).

    Args:
        target: loaded without kernels, which free what they pack.
        ids: [K] int64, ascending, the tokens that can be drafted; None = all.
        dtype: of the matrices; products are rounded to it.

    Raises:
        CapabilityError: transformers or compiled kernels run the target, so that its matrices are not at hand.
    """

    def __init__(self, target: Adapter, ids: Tensor | None = None, dtype: torch.dtype = torch.bfloat16) -> None:
        if not isinstance(target, Transformer) or target.path == "compiled":
            raise CapabilityError(
                "A drafter is trained beside a native model whose weights are plain.",
                "Use a model of a native family, and load it with is_compiled=False.",
            )
        self.ids, self._target, self._dtype, self._spec = ids, target, dtype, target.spec
        self.device = target.device
        weights = target.weights
        head = weights.head.dense() if ids is None else weights.head.dense()[ids]
        self._head = head.detach().to(dtype).clone()
        bias = weights.head.bias
        self._bias = None if bias is None else (bias if ids is None else bias[ids]).float()
        out = weights.project_out
        self._out = None if out is None else out.dense().detach().to(dtype)
        self._layers: list[dict[str, tuple[Tensor, Tensor | None]]] = []

    def embed(self, tokens: Tensor) -> Tensor:
        """Return float32 embeddings [..., hidden] of tokens [...]."""
        with torch.no_grad():
            flat = self._target.embed(tokens.reshape(1, -1))
        return flat.float().clone().view(*tokens.shape, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the target's logits [..., K] of last hidden states [..., hidden], of tokens that can be drafted."""
        x = hidden.to(self._dtype)
        if self._out is not None:
            x = F.linear(x, self._out)
        found = F.linear(x, self._head)
        if self._bias is not None:
            found = found + self._bias
        cap = self._spec.final_softcap
        return cap * torch.tanh(found / cap) if cap else found

    def forward(
        self,
        inputs: Tensor,
        position: Tensor,
        visible: Tensor,
        states: Tensor | None = None,
        first: int = 0,
        hook: Any = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the target's own layers with gradients; see `outpace.heads.net.Frozen.forward`.

        Raises:
            CapabilityError: the target is of no family whose layers are written out here (Llama's and its kin).
        """
        del states
        self._check()
        spec, x, entered = self._spec, inputs.to(self._dtype), []
        cos, sin = self._turns(position, x.dtype)
        mask = torch.zeros_like(visible, dtype=x.dtype).masked_fill(~visible, -torch.inf)[:, None]
        for layer in range(first, spec.num_layers):
            entered.append(x)
            w = self._target.weights.layers[layer]
            turns = (cos, sin) if spec.rope_index[layer] >= 0 else None
            x = x + self._attend(layer, self._norm(x, w.attn_norm), turns, mask, w, hook)
            x = x + self._mlp(layer, self._norm(x, w.mlp_norm), hook)
        return self._norm(x, self._target.weights.final_norm), entered

    def _check(self) -> None:
        spec = self._spec
        is_kin = spec.norm == "rms" and spec.norm_placement == "pre" and not spec.is_parallel and spec.is_gated
        is_plain = spec.attention == "causal" and spec.positions == "rotary"
        is_plain &= not (spec.attn_softcap or spec.query_growth)
        if not (is_kin and is_plain and len(spec.ropes) == 1 and not any(spec.windows) and not spec.turns_at):
            raise CapabilityError(
                "This kind of drafter is trained through the target's layers, which are written out for Llama's alone.",
                "Use a target of the Llama family, or another kind: medusa reads hidden states alone.",
            )
        if not self._layers:
            self._layers = [_parts(spec, w, self._dtype) for w in self._target.weights.layers]

    def _turns(self, position: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        end = int(position.max().clamp(min=0)) + 1
        cos, sin = rope_tables(self._spec, self._spec.ropes[0], dtype, position.device, end)
        place = position.clamp(min=0)
        return cos[place][:, None], sin[place][:, None]

    def _norm(self, x: Tensor, norm: Norm | None) -> Tensor:
        if norm is None:
            return x
        weight = None if norm.weight is None else norm.weight.to(x.dtype)
        return rms_norm(x, weight, self._spec.norm_eps)

    def _apply(self, layer: int, name: str, x: Tensor, hook: Any) -> Tensor:
        weight, bias = self._layers[layer][name]
        out = F.linear(x, weight, bias)
        return out if hook is None else hook(name, layer, x, out)

    def _attend(
        self, layer: int, x: Tensor, turns: tuple[Tensor, Tensor] | None, mask: Tensor, w: LayerWeights, hook: Any
    ) -> Tensor:
        spec, (rows, size, _) = self._spec, x.shape
        query, key, value = (self._apply(layer, name, x, hook) for name in ("q_proj", "k_proj", "v_proj"))
        if spec.qk_norm == "full":
            query, key = self._norm(query, Norm(w.q_norm)), self._norm(key, Norm(w.k_norm))
        query, key, value = (part.view(rows, size, -1, spec.head_dim) for part in (query, key, value))
        if spec.qk_norm == "head":
            query, key = self._norm(query, Norm(w.q_norm)), self._norm(key, Norm(w.k_norm))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        if turns is not None:
            query, key = (part * turns[0] + part.roll(spec.head_dim // 2, -1) * turns[1] for part in (query, key))
        groups = spec.num_heads // spec.num_kv_heads
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.transpose(-1, -2) * spec.attn_scale + mask
        exact = torch.promote_types(scores.dtype, torch.float32)
        mixed = scores.softmax(-1, dtype=exact).to(value.dtype) @ value
        return self._apply(layer, "o_proj", mixed.transpose(1, 2).reshape(rows, size, -1), hook)

    def _mlp(self, layer: int, x: Tensor, hook: Any) -> Tensor:
        gate, up = (self._apply(layer, name, x, hook) for name in ("gate_proj", "up_proj"))
        return self._apply(layer, "down_proj", activate(gate, self._spec.activation) * up, hook)


def _parts(spec: Spec, w: LayerWeights, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return a layer's matrices and biases, under the names of Hugging Face."""
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    cut = {"qkv": (spec.q_size, spec.kv_size, spec.kv_size), "up": (spec.ffn_size, spec.ffn_size)}
    names = {"qkv": ("q_proj", "k_proj", "v_proj"), "o": ("o_proj",), "up": ("gate_proj", "up_proj")}
    for part, called in {**names, "down": ("down_proj",)}.items():
        matrix = getattr(w, part)
        weight = matrix.dense().detach().to(dtype)
        sizes = cut.get(part, (len(weight),))
        bias = None if matrix.bias is None else matrix.bias.detach().to(dtype)
        biases = (None,) * len(sizes) if bias is None else bias.split(sizes)
        found |= dict(zip(called, zip(weight.split(sizes), biases, strict=True), strict=True))
    return found
