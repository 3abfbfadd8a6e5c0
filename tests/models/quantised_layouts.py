"""Quantised checkpoints of a tiny Llama, written the slow way: each row one long integer that is cut into words."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIG = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 50, "dtype": "float32", **SIZES}
BLOCK = "model.layers.0."
MODULES = {
    f"{BLOCK}self_attn.q_proj": (64, 64),
    f"{BLOCK}self_attn.k_proj": (32, 64),
    f"{BLOCK}self_attn.v_proj": (32, 64),
    f"{BLOCK}self_attn.o_proj": (64, 64),
    f"{BLOCK}mlp.gate_proj": (96, 64),
    f"{BLOCK}mlp.up_proj": (96, 64),
    f"{BLOCK}mlp.down_proj": (64, 96),
}
Tensors = dict[str, Tensor]


def words(rows: list[list[int]], bits: int) -> Tensor:
    """Rows of small numbers, each row as little-endian 32-bit words."""
    found = []
    for row in rows:
        number = sum(value << (bits * i) for i, value in enumerate(row))
        found.append([number >> (32 * i) & 0xFFFFFFFF for i in range(-(-len(row) * bits // 32))])
    return torch.tensor(found).to(torch.int32)


@dataclass
class Made:
    """A matrix as a file holds it, and its values."""

    tensors: Tensors
    dense: Tensor


@dataclass
class Source:
    """Random codes, zero points and scales; the value of each is scale * (code - zero)."""

    bits: int = 4
    group: int = 32  # 0 = all inputs
    is_zeroed: bool = True  # False = symmetric
    dtype: torch.dtype = torch.float16
    is_permuted: bool = False
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(5))

    def draw(self, rows: int, columns: int) -> None:
        size, most = self.group or columns, 1 << self.bits
        self.groups = columns // size
        self.codes = torch.randint(most, (rows, columns), generator=self.random)
        self.zero = torch.full((rows, self.groups), most // 2)
        if self.is_zeroed:
            self.zero = torch.randint(most, (rows, self.groups), generator=self.random)
        self.scale = (torch.rand(rows, self.groups, generator=self.random) * 0.1 / most + 1e-3).to(self.dtype)
        self.index = torch.arange(columns) // size
        if self.is_permuted:
            self.index = self.index[torch.randperm(columns, generator=self.random)]

    def dense(self) -> Tensor:
        values = self.scale.double()[:, self.index] * (self.codes - self.zero[:, self.index])
        return values.float()


def gptq(source: Source, rows: int, columns: int, less: int = 1, has_index: bool = True) -> Made:
    """Words of eight inputs (of four bits) by output; zero points less one, with borrowing across a word's fields."""
    source.draw(rows, columns)
    ones = sum(1 << at for at in range(0, 32, source.bits)) if source.bits != 3 else 0
    stored = source.zero if source.bits != 3 else (source.zero - less) % 8
    tensors = {
        "qweight": words(source.codes.tolist(), source.bits).t(),
        "qzeros": (words(stored.t().tolist(), source.bits).long() - less * ones).to(torch.int32),
        "scales": source.scale.t(),
    }
    if has_index:
        tensors["g_idx"] = source.index.to(torch.int32)
    return Made(tensors, source.dense())


def awq(source: Source, rows: int, columns: int) -> Made:
    """Words of eight outputs by input, in the order 0, 2, 4, 6, 1, 3, 5, 7."""
    source.draw(rows, columns)
    order = [8 * (i // 8) + (0, 2, 4, 6, 1, 3, 5, 7)[i % 8] for i in range(rows)]
    tensors = {
        "qweight": words(source.codes.t()[:, order].tolist(), 4),
        "qzeros": words(source.zero.t()[:, order].tolist(), 4),
        "scales": source.scale.t(),
    }
    return Made(tensors, source.dense())


def packed(source: Source, rows: int, columns: int) -> Made:
    """Words along the inputs; zero points, where there are any, in words along the outputs."""
    source.draw(rows, columns)
    tensors = {
        "weight_packed": words(source.codes.tolist(), source.bits),
        "weight_scale": source.scale,
        "weight_shape": torch.tensor([rows, columns]),
    }
    if source.is_zeroed:
        tensors["weight_zero_point"] = words(source.zero.t().tolist(), source.bits).t()
    if source.is_permuted:
        tensors["weight_g_idx"] = source.index.to(torch.int32)
    return Made(tensors, source.dense())


def int8(source: Source, rows: int, columns: int, is_one: bool = False) -> Made:
    """Signed bytes."""
    source.draw(rows, columns)
    half = 1 << (source.bits - 1)
    if is_one:  # for the whole tensor
        source.scale[:], source.zero[:] = source.scale[0, 0].item(), source.zero[0, 0].item()
    tensors = {"weight": (source.codes - half).to(torch.int8), "weight_scale": source.scale}
    if source.is_zeroed:
        tensors["weight_zero_point"] = (source.zero - half).to(torch.int8)
    if is_one:
        tensors |= {name: tensors[name].flatten()[:1] for name in ("weight_scale", "weight_zero_point")}
    return Made(tensors, source.dense())


def float8(rows: int, columns: int, block: tuple[int, int], name: str = "weight_scale", **_: Any) -> Made:
    """Eight-bit floats and a scale per block, of which the last ones may be partial; 0 = all that there are."""
    random = torch.Generator().manual_seed(rows + columns)
    values = (torch.randn(rows, columns, generator=random) * 4).to(torch.float8_e4m3fn)
    high, wide = block[0] or rows, block[1] or columns
    scale = torch.rand(-(-rows // high), -(-columns // wide), generator=random) * 0.02 + 1e-3
    spread = scale.repeat_interleave(high, 0)[:rows].repeat_interleave(wide, 1)[:, :columns]
    return Made({"weight": values, name: scale}, values.float() * spread)


def write(directory: Path, settings: Any, make: Callable[[str, int, int], Made | None], **keys: Any) -> Path:
    """Write a checkpoint, and below "dense" the same model of its values.

    Args:
        directory: where.
        settings: the quantization_config.
        make: a module's matrix; None = it stays plain.
        **keys: more of config.json.
    """
    random = torch.Generator().manual_seed(1)
    plain = {
        "model.embed_tokens.weight": torch.randn(50, 64, generator=random),
        "lm_head.weight": torch.randn(50, 64, generator=random),
        **{f"{BLOCK}{name}.weight": torch.ones(64) for name in ("input_layernorm", "post_attention_layernorm")},
        "model.norm.weight": torch.ones(64),
    }
    stored, dense = dict(plain), dict(plain)
    for module, (rows, columns) in MODULES.items():
        made = make(module, rows, columns)
        if made is None:
            stored[f"{module}.weight"] = dense[f"{module}.weight"] = torch.randn(rows, columns, generator=random) * 0.1
            continue
        stored |= {f"{module}.{name}": tensor.contiguous() for name, tensor in made.tensors.items()}
        dense[f"{module}.weight"] = made.dense.contiguous()
    for path, tensors, more in (
        (directory, stored, {"quantization_config": settings}),
        (directory / "dense", dense, {}),
    ):
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(CONFIG | more | keys))
        save_file(tensors, path / "model.safetensors")
    return directory
