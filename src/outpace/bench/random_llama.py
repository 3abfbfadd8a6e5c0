"""A random Llama made on a device, as our decoder and as transformers' model of the same weights, without files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from outpace.models.lookup import make_spec
from outpace.models.spec import Spec
from outpace.models.transformer import Transformer
from outpace.models.weights import LayerWeights, Matrix, Norm, Weights

__all__ = ["SHAPES", "first_layers", "hf_twin", "random_decoder"]

_COMMON = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 500000.0}
# 1,104,152,576 parameters in the larger one: the layers of Llama 3.2 1B under a vocabulary of 32,000.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
    },
    "1b": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 4096,
    },
}


def random_decoder(size: str, dtype: str, device: str, seed: int = 0) -> Transformer:
    """Return a random decoder.

    Embedding x25, output and down projections x3, head x4 over the usual 0.02, so that greedy text is not one
    repeated id.

    Args:
        size: of `SHAPES`.
        dtype: its name.
        device: where the weights are drawn; other devices draw others.
        seed: of the draws.
    """
    spec, kind = _spec(size), getattr(torch, dtype)
    source = torch.Generator(device).manual_seed(seed)

    def matrix(rows: int, columns: int, factor: float = 1.0) -> Tensor:
        return torch.randn(rows, columns, generator=source, dtype=kind, device=device).mul_(0.02 * factor)

    def norm() -> Norm:
        return Norm(torch.ones(spec.hidden_size, dtype=kind, device=device))

    hidden = spec.hidden_size
    layers = [
        LayerWeights(
            qkv=Matrix(matrix(spec.q_size + 2 * spec.kv_size, hidden)),
            o=Matrix(matrix(hidden, spec.q_size, 3)),
            up=Matrix(matrix(2 * spec.ffn_size, hidden)),
            down=Matrix(matrix(hidden, spec.ffn_size, 3)),
            attn_norm=norm(),
            mlp_norm=norm(),
        )
        for _ in range(spec.num_layers)
    ]
    embed, head = matrix(spec.vocab_size, hidden, 25), Matrix(matrix(spec.vocab_size, hidden, 4))
    return Transformer(spec, Weights(embed, layers, head, final_norm=norm()), pack=False)


def _spec(size: str) -> Spec:
    return make_spec({**_COMMON, **SHAPES[size]})


def first_layers(model: Transformer, count: int = 1) -> Transformer:
    """Return a drafter made of a decoder's first layers; its weights are the decoder's own."""
    spec = model.spec
    kept = replace(spec, num_layers=count, windows=spec.windows[:count], rope_index=spec.rope_index[:count])
    drafter = Transformer(kept, replace(model.weights, layers=model.weights.layers[:count]), pack=False)
    drafter.use_graphs(None if model.graphs is None else model.graphs.fresh())
    return drafter


def hf_twin(model: Transformer) -> Any:
    """Return transformers' Llama that reads the same memory as a decoder of ours.

    Args:
        model: a Llama whose matrices are plain and whose heads turn whole.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    spec, weights, turns = model.spec, model.weights, model.spec.ropes[0].inv_freq
    config = LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.ffn_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_position_embeddings=spec.max_positions,
        rms_norm_eps=spec.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": turns[1] ** -len(turns)},
        tie_word_embeddings=False,
    )
    named = {"model.embed_tokens.weight": weights.embed, "lm_head.weight": weights.head.dense()}
    if weights.final_norm is not None and weights.final_norm.weight is not None:
        named["model.norm.weight"] = weights.final_norm.weight
    for index, layer in enumerate(weights.layers):
        named |= {f"model.layers.{index}.{name}.weight": tensor for name, tensor in _parts(spec, layer).items()}
    with torch.device(model.device):
        twin: Any = LlamaForCausalLM(config)
    twin.load_state_dict(named, assign=True)  # which leaves the rotation's frequencies in float32
    twin.generation_config = GenerationConfig()
    return twin.eval()


def _parts(spec: Spec, layer: LayerWeights) -> dict[str, Tensor]:
    """Return one layer's tensors under transformers' names."""
    query, key, value = layer.qkv.dense().split([spec.q_size, spec.kv_size, spec.kv_size])
    gate, up = layer.up.dense().chunk(2)
    found = {
        f"self_attn.{name}_proj": part for name, part in zip("qkvo", (query, key, value, layer.o.dense()), strict=True)
    }
    found |= {f"mlp.{name}_proj": part for name, part in (("gate", gate), ("up", up), ("down", layer.down.dense()))}
    for name, norm in (("input_layernorm", layer.attn_norm), ("post_attention_layernorm", layer.mlp_norm)):
        assert norm is not None and norm.weight is not None  # a Llama has both
        found[name] = norm.weight
    return found
