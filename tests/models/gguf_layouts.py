"""Transformers' models written as GGUF by the `gguf` package, in the layout of llama.cpp's converter.

Names come from the package's own map; what the converter does to tensors beyond that is done here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers as hf
from shapes import GEMMA, GROUPED, LLAMA3, YARN, rope

BASE = GROUPED | {"num_hidden_layers": 2}
GEMMA2 = BASE | GEMMA | {"query_pre_attn_scalar": 10}  # as llama.cpp has it: a head's size
# Divisors of rotations that a float32 holds.
LONG = rope("longrope", short_factor=[1.0, 1.25, 1.5, 2.0], long_factor=[2.0, 3.0, 5.0, 8.0])

CASES: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "llama": lambda: hf.LlamaConfig(**BASE, head_dim=10),
    "llama-biased-tied": lambda: hf.LlamaConfig(**BASE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama-linear": lambda: hf.LlamaConfig(**BASE, **rope("linear", factor=3.0)),
    "llama-yarn": lambda: hf.LlamaConfig(**BASE, **rope("yarn", **YARN)),
    "llama-llama3": lambda: hf.LlamaConfig(**BASE, **rope("llama3", **LLAMA3)),
    "qwen2": lambda: hf.Qwen2Config(**BASE),
    "qwen3": lambda: hf.Qwen3Config(**BASE, head_dim=10),
    "gemma2": lambda: hf.Gemma2Config(**GEMMA2, final_logit_softcapping=8.0, attn_logit_softcapping=3.0),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **GEMMA2 | {"num_hidden_layers": 7},
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "phi3": lambda: hf.Phi3Config(**BASE, sliding_window=11, pad_token_id=0, **rope("default")),
    "phi3-partial": lambda: hf.Phi3Config(**BASE, pad_token_id=0, **rope("default", partial_rotary_factor=0.75)),
    "phi3-longrope": lambda: hf.Phi3Config(**BASE, pad_token_id=0, original_max_position_embeddings=80, **LONG),
    "gpt2": lambda: hf.GPT2Config(vocab_size=131, n_embd=48, n_layer=2, n_head=6, n_positions=96),
    "smollm3": lambda: hf.SmolLM3Config(**BASE | {"num_hidden_layers": 5}, pad_token_id=0),
    "olmo2": lambda: hf.Olmo2Config(**BASE),
}


def write_gguf(
    model: hf.PreTrainedModel,
    path: Path,
    kind: str = "F32",
    more: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
    split: int = 0,
) -> Path:
    """Write a model, its matrices in one type (those whose rows do not fill blocks in Q8_0 or F32).

    Args:
        model: of a case.
        path: the file; of several the name without "-00001-of-0000N".
        kind: a type of tensors.
        more: adds further keys.
        split: tensors per part, 0 = one file.
    """
    architecture = model.config.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split)
    _KEYS.get(architecture, llama_keys)(writer, model.config)
    more(writer)
    for name, tensor in tensors_of(model, architecture):
        number = tensor.float().numpy()
        wanted = gguf.GGMLQuantizationType[kind if number.ndim > 1 else "F32"]
        if number.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
            wanted = gguf.GGMLQuantizationType["F32"]
        writer.add_tensor(name, gguf.quantize(number, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors_of(model: hf.PreTrainedModel, architecture: str) -> Sequence[tuple[str, torch.Tensor]]:
    config = model.config
    number = gguf.MODEL_ARCH[architecture.upper()]
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    found = []
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture in ("llama", "smollm3") and ".self_attn.q_proj." in name:
            tensor = turned(tensor, config.num_attention_heads)
        elif architecture in ("llama", "smollm3") and ".self_attn.k_proj." in name:
            tensor = turned(tensor, config.num_key_value_heads)
        elif architecture.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        elif name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            tensor = tensor.t()
        found.append((str(names.get_name(name, try_suffixes=(".weight", ".bias"))), tensor.contiguous()))
    settings = config.rope_parameters if architecture != "gpt2" else {}
    if settings.get("rope_type") == "llama3":
        found.append(("rope_freqs.weight", divisors(config, settings)))
    for name in ("long", "short"):
        if f"{name}_factor" in settings:
            found.append((f"rope_factors_{name}.weight", torch.tensor(settings[f"{name}_factor"])))
    return found


def turned(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows i and i + half of each head side by side."""
    return tensor.view(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def divisors(config: Any, settings: dict[str, Any]) -> torch.Tensor:
    """What the Llama 3 scaling divides each frequency by."""
    found, dim = [], config.hidden_size // config.num_attention_heads
    low, high, old = (
        settings[f"{name}"] for name in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    )
    for pair in range(dim // 2):
        length = 2 * math.pi * settings["rope_theta"] ** (2 * pair / dim)
        smooth = min(1.0, max(0.0, (old / length - low) / (high - low)))
        found.append(1 / ((1 - smooth) / settings["factor"] + smooth))
    return torch.tensor(found)


# Keys


def shape_keys(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def llama_keys(writer: gguf.GGUFWriter, config: Any) -> None:
    shape_keys(writer, config)
    settings = config.rope_parameters
    settings = settings.get("full_attention", settings)
    writer.add_rope_freq_base(settings["rope_theta"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.model_type in ("llama", "smollm3"):
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
    if settings.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(settings["rope_type"]))
        writer.add_rope_scaling_factor(settings["factor"])
    if settings.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(settings["original_max_position_embeddings"])
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)


def gemma2_keys(writer: gguf.GGUFWriter, config: Any) -> None:
    shape_keys(writer, config)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def phi3_keys(writer: gguf.GGUFWriter, config: Any) -> None:
    shape_keys(writer, config)
    settings, heads = config.rope_parameters, config.num_attention_heads
    original = settings.get("original_max_position_embeddings") or config.max_position_embeddings
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_rope_dimension_count(int(settings.get("partial_rotary_factor", 1.0) * config.hidden_size) // heads)
    writer.add_rope_freq_base(settings["rope_theta"])
    writer.add_sliding_window(config.sliding_window or 0)
    if "long_factor" in settings:
        scale = config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))


def gpt2_keys(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


_KEYS = {"gemma2": gemma2_keys, "phi3": phi3_keys, "gpt2": gpt2_keys}


def byte_tokenizer(writer: gguf.GGUFWriter, tokens: Sequence[str], merges: Sequence[str], types: Sequence[int]) -> None:
    """Write byte-level pairs, cut as GPT-2 cuts."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(types))
    writer.add_token_merges(list(merges))


def dequantised(path: Path, name: str) -> torch.Tensor:
    """A tensor of a file as the `gguf` package reads it."""
    tensor = next(one for one in gguf.GGUFReader(path).tensors if one.name == name)
    return torch.from_numpy(np.array(gguf.dequantize(tensor.data, tensor.tensor_type)))
