"""A Llama directory as one GGUF file, so that llama.cpp runs on the same weights.

The format: a header, typed key-value pairs, a table of tensors, then their bytes, each tensor aligned. No vocabulary is
written (kind "none"): ids in, ids out. llama.cpp turns neighbouring dimensions of a head where Hugging Face files turn
the two halves, so query and key rows are reordered.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.models.loading import read_config
from outpace.models.tensors import TensorFiles, find_tensor_files

__all__ = ["write_gguf"]

_MAGIC, _VERSION, _ALIGNMENT = b"GGUF", 3, 32
_UINT32, _FLOAT32, _STRING = 4, 6, 8  # value types
_KINDS = {torch.float32: (0, 0), torch.bfloat16: (30, 32)}  # torch dtype: (tensor type, file type)
_PLAIN = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(source: str | Path, path: Path, dtype: torch.dtype) -> Path:
    """Write a model for llama.cpp, matrices in `dtype`, norms in float32.

    Args:
        source: a Hugging Face directory of a Llama without biases and rope scaling.
        path: the file to write.
        dtype: float32 or bfloat16.

    Raises:
        ModelError: the source is no such model, or the dtype is another one.
    """
    config = read_config(source)
    if dtype not in _KINDS:
        raise ModelError(f"GGUF files are written in float32 and bfloat16, not in {dtype}.")
    if config.get("model_type") != "llama" or config.get("rope_scaling") or config.get("attention_bias"):
        raise ModelError("Only Llamas without biases and rope scaling are written as GGUF.", "Use stories.")
    files = TensorFiles(find_tensor_files(Path(source)))
    names = list(_names(files, config["num_hidden_layers"]))
    with path.open("wb") as file:
        _write_head(file, config, _KINDS[dtype][1], len(names))
        _write_table(file, files, names, dtype)
        for name, _ in names:
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            tensor = _reordered(name, files.read(name, files.entries[name].shape), config)
            tensor = tensor.to(_stored(tensor.dim(), dtype)).contiguous()
            file.write(memoryview(tensor.view(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
        file.write(b"\0" * (-file.tell() % _ALIGNMENT))
    return path


def _names(files: TensorFiles, layers: int) -> Iterator[tuple[str, str]]:
    """Yield (name here, name in GGUF) of every tensor; one without a counterpart is refused."""
    known = {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in _PLAIN.items()}
    for layer in range(layers):
        known |= {f"model.layers.{layer}.{a}.weight": f"blk.{layer}.{b}.weight" for a, b in _LAYER.items()}
    for name in files.entries:
        if name not in known:
            raise ModelError(f"GGUF has no place for the tensor {name}.", "Use a Llama without biases.")
        yield name, known[name]


def _write_head(file: BinaryIO, config: Mapping[str, Any], file_type: int, num_tensors: int) -> None:
    heads = config["num_attention_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    base = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta", 10000.0)
    numbers = {
        "general.file_type": file_type,
        "general.alignment": _ALIGNMENT,
        "llama.vocab_size": config["vocab_size"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "llama.attention.key_length": dim,
        "llama.attention.value_length": dim,
        "llama.rope.dimension_count": dim,
    }
    texts = {"general.architecture": "llama", "general.name": "outpace", "tokenizer.ggml.model": "none"}
    fractions = {"llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"], "llama.rope.freq_base": base}
    file.write(_MAGIC + struct.pack("<IQQ", _VERSION, num_tensors, len(numbers) + len(texts) + len(fractions)))
    for key, text in texts.items():
        file.write(_text(key) + struct.pack("<I", _STRING) + _text(text))
    for key, number in numbers.items():
        file.write(_text(key) + struct.pack("<II", _UINT32, number))
    for key, value in fractions.items():
        file.write(_text(key) + struct.pack("<If", _FLOAT32, value))


def _write_table(file: BinaryIO, files: TensorFiles, names: list[tuple[str, str]], dtype: torch.dtype) -> None:
    offset = 0
    for name, theirs in names:
        shape = files.entries[name].shape
        stored = _stored(len(shape), dtype)
        file.write(_text(theirs) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape)))
        file.write(struct.pack("<IQ", _KINDS[stored][0], offset))
        size = int(torch.Size(shape).numel()) * stored.itemsize
        offset += size + -size % _ALIGNMENT


def _stored(dims: int, dtype: torch.dtype) -> torch.dtype:
    return dtype if dims > 1 else torch.float32


def _reordered(name: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Put rows i and i + dim/2 of each query and key head side by side."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return tensor
    key = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
    heads = config.get(key) or config["num_attention_heads"]
    return tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
