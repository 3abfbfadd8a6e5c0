"""A block drafter's body for the compiled kernels: what of a network they serve, and how it is handed to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from outpace.kernels.block import BlockLayer, BlockWeights, CompiledBlock, compile_block
from outpace.models.quantised import join
from outpace.models.rounded import rounded
from outpace.models.weights import Matrix

if TYPE_CHECKING:
    from outpace.heads.dflash import DFlashNet
    from outpace.heads.model import HeadModel

__all__ = ["compile_body"]


def compile_body(net: DFlashNet, model: HeadModel) -> CompiledBlock | None:
    """Return a network's body on packed weights; None where it, or its target's output matrix, is of another form.

    In bfloat16, matrices are read as bytes: a draft is checked, so that rounding can cost no more than a few of them.

    Args:
        net: on the CPU, in the target's dtype.
        model: whose network it is.
    """
    own = net.config.settings
    if model.device.type != "cpu" or own["bias"] or "conv_taps" in own:
        return None
    head = model.output_matrix()
    if head is None:
        return None
    has_bytes = model.dtype == torch.bfloat16
    layers: list[Any] = list(net.layers)
    parts = _Parts(net, has_bytes)
    weights = BlockWeights(
        heads=own["heads"],
        kv_heads=own["kv_heads"],
        head_dim=own["head_dim"],
        places=net.places,
        depth=net.config.depth,
        window=own["window"],
        is_causal=own["is_causal"],
        adds_state=own["adds_state"],
        eps=own["eps"],
        fuse=parts.matrix([net.fc]),
        feature_norm=net.hidden_norm.weight,
        masks=net.masks(model),
        layers=[_layer(layer, parts) for layer in layers],
        norm=net.norm.weight,
        head=_as_matrix(head, has_bytes),
    )
    return compile_block(weights, model.dtype)


def _layer(layer: Any, parts: _Parts) -> BlockLayer:
    attention, mlp = layer.self_attn, layer.mlp
    return BlockLayer(
        input_norm=layer.input_layernorm.weight,
        qkv=parts.matrix([attention.q_proj, attention.k_proj, attention.v_proj]),
        query_norm=attention.q_norm.weight if attention.has_norm else None,
        key_norm=attention.k_norm.weight if attention.has_norm else None,
        output=parts.matrix([attention.o_proj]),
        ffn_norm=layer.post_attention_layernorm.weight,
        gate_up=parts.matrix([mlp.gate_proj, mlp.up_proj]),
        down=parts.matrix([mlp.down_proj]),
    )


class _Parts:
    """The matrices of a network, as they were stored where kernels can read that."""

    def __init__(self, net: DFlashNet, has_bytes: bool) -> None:
        self.has_bytes = has_bytes
        names = {id(weight): name for name, weight in net.named_parameters()}
        self.coded = {key: net.coded[name] for key, name in names.items() if name in net.coded} if has_bytes else {}

    def matrix(self, parts: Sequence[nn.Linear]) -> Matrix:
        """Return some maps of the same inputs as one matrix, rows after rows."""
        stored = [self.coded.get(id(part.weight)) for part in parts]
        known = [one for one in stored if one is not None]
        if len(known) == len(parts):
            return Matrix(known[0] if len(known) == 1 else join(known))
        return _as_matrix(torch.cat([part.weight for part in parts]), self.has_bytes)


def _as_matrix(weight: Tensor, has_bytes: bool) -> Matrix:
    quantised = rounded(weight) if has_bytes else None
    return Matrix(weight if quantised is None else quantised)
