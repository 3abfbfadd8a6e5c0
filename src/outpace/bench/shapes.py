"""Random Llamas of set sizes, and a plain PyTorch forward on oneDNN-prepacked matrices to compare ours with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from outpace.models.assemble import assemble
from outpace.models.loading import read_config
from outpace.models.lookup import find_family, make_spec
from outpace.models.spec import rope_tables
from outpace.models.tensors import TensorFiles, find_tensor_files
from outpace.models.weights import Matrix, can_pack

__all__ = ["SIZES", "PlainTorch", "random_llama", "streamed"]

# The peers' sizes: 31,990,272 and 348,701,696 parameters, of which 27.8M and 315.9M are read per token.
SIZES: Mapping[str, Mapping[str, int]] = {
    "tiny": {"vocab": 512, "hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 176, "dim": 16},
    "30m": {"vocab": 8192, "hidden": 512, "layers": 8, "heads": 8, "kv_heads": 4, "ffn": 1408, "dim": 64},
    "350m": {"vocab": 32000, "hidden": 1024, "layers": 24, "heads": 16, "kv_heads": 8, "ffn": 2816, "dim": 64},
}


def random_llama(size: str, directory: Path, seed: int = 0) -> Path:
    """Write a random Llama in bfloat16.

    Embedding x25, output and down projections x3, head x4 over the usual 0.02, so that greedy text is not one
    repeated id.
    """
    shape = SIZES[size]
    hidden, ffn, dim = shape["hidden"], shape["ffn"], shape["dim"]
    generator = torch.Generator().manual_seed(seed)

    def matrix(outputs: int, inputs: int, factor: float = 1.0) -> Tensor:
        return (torch.randn(outputs, inputs, generator=generator) * (0.02 * factor)).bfloat16()

    tensors = {"model.embed_tokens.weight": matrix(shape["vocab"], hidden, 25)}
    for layer in range(shape["layers"]):
        name = f"model.layers.{layer}."
        tensors |= {
            name + "input_layernorm.weight": torch.ones(hidden).bfloat16(),
            name + "post_attention_layernorm.weight": torch.ones(hidden).bfloat16(),
            name + "self_attn.q_proj.weight": matrix(shape["heads"] * dim, hidden),
            name + "self_attn.k_proj.weight": matrix(shape["kv_heads"] * dim, hidden),
            name + "self_attn.v_proj.weight": matrix(shape["kv_heads"] * dim, hidden),
            name + "self_attn.o_proj.weight": matrix(hidden, shape["heads"] * dim, 3),
            name + "mlp.gate_proj.weight": matrix(ffn, hidden),
            name + "mlp.up_proj.weight": matrix(ffn, hidden),
            name + "mlp.down_proj.weight": matrix(hidden, ffn, 3),
        }
    tensors["model.norm.weight"] = torch.ones(hidden).bfloat16()
    tensors["lm_head.weight"] = matrix(shape["vocab"], hidden, 4)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(_config(shape), indent=2), encoding="utf-8")
    return directory


def _config(shape: Mapping[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape["vocab"],
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["ffn"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": shape["dim"],
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def streamed(size: str) -> int:
    """Return the parameters that one token reads: all but the embedding table."""
    shape = SIZES[size]
    hidden, dim = shape["hidden"], shape["dim"]
    layer = 2 * hidden * dim * (shape["heads"] + shape["kv_heads"]) + 3 * hidden * shape["ffn"] + 2 * hidden
    return shape["layers"] * layer + shape["vocab"] * hidden + hidden


class PlainTorch:
    """A Llama as one would write it in PyTorch: fused projections, prepacked, a preallocated cache, torch's attention.

    Args:
        directory: of a Llama.
        dtype: to compute in.
        capacity: cache slots.
    """

    def __init__(self, directory: Path, dtype: torch.dtype, capacity: int) -> None:
        config = read_config(directory)
        self.spec = spec = make_spec(config)
        device = torch.device("cpu")
        files = TensorFiles(find_tensor_files(directory))
        self.weights = assemble(files, spec, find_family(config), dtype, device, False)
        if can_pack(dtype, device):
            self.weights.pack()
        self.cos, self.sin = rope_tables(spec, spec.ropes[0], dtype, device, capacity)
        shape = (1, spec.num_kv_heads, capacity, spec.head_dim)
        self.cache = [(torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)) for _ in range(spec.num_layers)]
        slots = torch.arange(capacity)
        self.mask = slots[None, :] <= slots[:, None]

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, start: int) -> Tensor:
        """Return logits [T, V] of `tokens` [T] behind `start` cached ones."""
        end = start + tokens.shape[0]
        mask = None if tokens.shape[0] == 1 else self.mask[start:end, :end]
        cos, sin = self.cos[start:end], self.sin[start:end]
        x = F.embedding(tokens, self.weights.embed)
        for layer, (keys, values) in zip(self.weights.layers, self.cache, strict=True):
            past = keys[:, :, :end], values[:, :, :end]
            x = x + layer.o(self._attend(layer.qkv, self._norm(x, layer.attn_norm), past, (cos, sin), mask))
            gate, up = layer.up(self._norm(x, layer.mlp_norm)).chunk(2, -1)
            x = x + layer.down(F.silu(gate) * up)
        return self.weights.head(self._norm(x, self.weights.final_norm))

    def _norm(self, x: Tensor, norm: Any) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], norm.weight.to(x.dtype), self.spec.norm_eps)

    def _attend(
        self, qkv: Matrix, x: Tensor, past: tuple[Tensor, Tensor], turn: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> Tensor:
        spec, size = self.spec, x.shape[0]
        heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        parts = qkv(x).view(1, size, heads + 2 * kv_heads, dim).transpose(1, 2)
        turned = parts[:, : heads + kv_heads]
        turned = turned * turn[0] + turned.roll(dim // 2, -1) * turn[1]
        keys, values = past
        keys[:, :, -size:], values[:, :, -size:] = turned[:, heads:], parts[:, heads + kv_heads :]
        seen = F.scaled_dot_product_attention(turned[:, :heads], keys, values, attn_mask=mask, enable_gqa=True)
        return seen.transpose(1, 2).reshape(size, heads * dim)
