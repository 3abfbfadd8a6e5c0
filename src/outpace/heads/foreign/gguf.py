"""GGUF drafters of llama.cpp (architectures eagle3 and dflash), under the names and keys that Hugging Face files have.

Layers are numbered by what they enter, `d2t` holds ids, and EAGLE-3's queries and keys lie as Llama's do there: what
turns together stands side by side. DFlash's do not.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from outpace.errors import ModelError
from outpace.heads.foreign.source import Source
from outpace.text.files import AGAIN

__all__ = ["as_hugging"]

_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "attn_norm_2": "hidden_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_conv_proj": "attention_conv.kernel_projection",
    "ffn_conv_proj": "mlp_conv.kernel_projection",
    "attn_conv_base": "attention_conv.base_kernel",
    "ffn_conv_base": "mlp_conv.base_kernel",
}
_OUTER = {
    "token_embd": "embed_tokens",
    "output": "lm_head",
    "output_norm": "norm",
    "markov_w1": "markov_head.markov_w1",
    "markov_w2": "markov_head.markov_w2",
    "conf_proj": "confidence_head.proj",
    "selector_hidden": "candidate_selector.hidden_projection",
}
_BARE = {
    "selector_predecessor": "candidate_selector.predecessor_codebook",
    "selector_successor": "candidate_selector.successor_codebook",
}
_KEYS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
    "attention.causal": "is_causal",
}
_AS_IS = (
    "target_layers target_hidden_size norm_before_residual norm_before_fc norm_output block_size selector_top_k "
    "sample_from_anchor"
).split()


def as_hugging(source: Source) -> Source:
    """Return a GGUF drafter under Hugging Face's names; its `architecture` stays, since `d2t` holds ids.

    Raises:
        ModelError: it scales its rotary positions, which is not read here.
    """
    config = {theirs: source.config[ours] for ours, theirs in _KEYS.items() if source.config.get(ours) is not None}
    config |= {key: source.config[key] for key in _AS_IS if source.config.get(key) is not None}
    mask = source.config.get("tokenizer.ggml.mask_token_id")
    if mask is not None:
        config["mask_token_id"] = int(mask)
    if source.config.get("rope.scaling.type") not in (None, "none") or "rope_freqs.weight" in source.tensors:
        raise ModelError(f"The drafter {source.path} scales its rotary positions, which is not read here.", AGAIN)
    tensors = {_name(name, source.architecture): tensor for name, tensor in source.tensors.items()}
    if source.architecture == "eagle3":
        _unfold(tensors, config)
    return Source(source.path, config, tensors, source.architecture, source.files)


def _name(name: str, architecture: str) -> str:
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem or name)
    if layer and layer[2] in _LAYER:
        found = f"layers.{layer[1]}.{_LAYER[layer[2]]}"
        return found if found.endswith("base_kernel") else f"{found}.{kind}"
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", name)
    if layer and layer[2] in _LAYER:  # the base kernels have no ".weight"
        return f"layers.{layer[1]}.{_LAYER[layer[2]]}"
    if stem == "enc.output_norm":
        return "input_norm.weight" if architecture == "eagle3" else "hidden_norm.weight"
    if stem in _BARE:
        return _BARE[stem]
    return f"{_OUTER[stem]}.{kind}" if stem in _OUTER else name


def _unfold(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Put the halves of each head one behind the other, as Hugging Face files have them."""
    heads = config.get("num_attention_heads")
    for name in [one for one in tensors if "q_proj." in one or "k_proj." in one]:
        count = heads if "q_proj." in name else config.get("num_key_value_heads") or heads
        rows = tensors[name]
        if not isinstance(count, int) or count < 1 or len(rows) % (2 * count):
            raise ModelError(f"The queries or keys of a drafter are no {count} heads.", AGAIN)
        order = torch.arange(len(rows)).view(count, -1, 2).transpose(1, 2).reshape(-1)
        tensors[name] = rows[order]
