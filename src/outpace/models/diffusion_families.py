"""The masked families: bodies of Llama, Qwen2 and Qwen3, dense or mixtures of experts, decoded as their cards say.

Only the body is described here; attention, shift, mask token and blocks come from `outpace.models.card`.

Papers: Nie et al. (2025), arXiv 2502.09992 (LLaDA); Ye et al. (2025), arXiv 2508.15487 (Dream); Cheng et al. (2025),
    arXiv 2510.06303 (SDAR); Wu et al. (2025), arXiv 2509.26328 (Fast-dLLM v2); Zhu et al. (2025), arXiv 2509.24389
    (LLaDA-MoE); Bie et al. (2025), arXiv 2512.15745 (LLaDA2).
"""

from __future__ import annotations

from typing import Any

from outpace.errors import ModelError
from outpace.models.families import LLAMA_NAMES, OUTER_NAMES, QK_NAMES, Config, Family, llama, qwen2, qwen3
from outpace.models.mixture import Routing

__all__ = ["DIFFUSION"]

# What LLaDA's settings could say besides what its checkpoints do say. A file that lacks one of them means the first.
_LLADA_ONLY: dict[str, tuple[Any, ...]] = {
    "activation_type": ("silu",),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "bias_for_layer_norm": (False, None),
    "block_group_size": (1,),
    "block_type": ("llama",),
    "clip_qkv": (None,),
    "include_bias": (False,),
    "input_emb_norm": (False,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "rope": (True,),
    "scale_logits": (False,),
}


def _llada(config: Config, context: int) -> dict[str, Any]:
    """LLaDA's own words for a Llama."""
    for key, known in _LLADA_ONLY.items():
        if config.get(key, known[0]) not in known:
            raise ModelError(
                f"LLaDA with {key} {config[key]!r} has no native loader.", hint=f"Known here: {key} {known[0]!r}."
            )
    hidden, heads = config["d_model"], config["n_heads"]
    one = 1 if config.get("multi_query_attention") else heads
    words = {
        "vocab_size": config.get("embedding_size") or config["vocab_size"],
        "hidden_size": hidden,
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("n_kv_heads") or one,
        "intermediate_size": config.get("mlp_hidden_size") or int(config["mlp_ratio"] * hidden),
        "max_position_embeddings": config.get("max_sequence_length", 1024),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_theta": config.get("rope_theta", 10000.0),
        "rope_scaling": config.get("rope_scaling"),
        "tie_word_embeddings": config.get("weight_tying", True),
    }
    return llama(words, context) | {"qkv_bias": bool(config.get("include_qkv_bias", False))}


def _only(name: str, config: Config, known: dict[str, tuple[Any, ...]]) -> None:
    """Refuse settings that nobody computes here, by their names; a file that lacks one means the first value."""
    for key, values in known.items():
        if config.get(key, values[0]) not in values:
            raise ModelError(
                f"{name} with {key} {config[key]!r} has no native loader.", f"Known here: {key} {values[0]!r}."
            )


def _sdar_moe(config: Config, context: int) -> dict[str, Any]:
    """Qwen3 with experts in every layer."""
    _only("SDAR-MoE", config, {"decoder_sparse_step": (1,), "mlp_only_layers": ([], None)})
    routing = Routing(
        experts=config["num_experts"],
        chosen=config["num_experts_per_tok"],
        ffn_size=config["moe_intermediate_size"],
        is_normalised=bool(config.get("norm_topk_prob", False)),
    )
    sizes = {"intermediate_size": config["moe_intermediate_size"]} | dict(config)
    return qwen3(sizes, context) | {"routing": routing}


_LLADA_MOE_ONLY: dict[str, tuple[Any, ...]] = {
    "expert_bias": (None, False),
    "moe_router_enable_expert_bias": (False, None),
    "partial_rotary_factor": (1, None),
    "routed_scaling_factor": (1, None),
    "router_num_group": (None, 1),
    "router_topk_group": (None, 1),
    "score_function": ("softmax", None),
    "shared_expert_intermediate_size": (None, 0),
    "num_shared_experts": (None, 0),
}


def _llada_moe(config: Config, context: int) -> dict[str, Any]:
    """LLaDA-MoE: norms over heads, experts in every layer; it says `model_type` llada as dense ones do."""
    _only("LLaDA-MoE", config, _LLADA_MOE_ONLY)
    frequency = config.get("moe_layer_freq", 1)
    if any(every != 1 for every in (frequency if isinstance(frequency, list) else [frequency])):
        raise ModelError("LLaDA-MoE with dense layers has no native loader.", "Known here: moe_layer_freq of ones.")
    width = config["expert_intermediate_size"]
    routing = Routing(
        experts=config["num_experts"],
        chosen=config["num_experts_per_tok"],
        ffn_size=width,
        is_normalised=bool(config.get("norm_topk_prob", False)),
    )
    sizes = {"rms_norm_eps": 1e-5, "rope_theta": 50000.0} | dict(config) | {"intermediate_size": width}
    norm = "head" if config.get("qk_layernorm", True) else "none"
    return llama(sizes, context) | {"qk_norm": norm, "routing": routing, "mlp_bias": False}


_LLADA2_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "moe_router_enable_expert_bias": (True,),
    "score_function": ("sigmoid",),
    "use_bias": (False,),
    "use_qkv_bias": (False,),
    "use_qk_norm": (True, None),
    "num_nextn_predict_layers": (0, None),
}


def _llada2(config: Config, context: int) -> dict[str, Any]:
    """LLaDA2: half of each head turns; the first layers are dense, the others have grouped experts and a shared one."""
    _only("LLaDA2", config, _LLADA2_ONLY)
    width = config["moe_intermediate_size"]
    routing = Routing(
        experts=config["num_experts"],
        chosen=config["num_experts_per_tok"],
        ffn_size=width,
        shared_size=width * (config.get("num_shared_experts") or 0),
        dense=config.get("first_k_dense_replace", 1),
        is_sigmoid=True,
        is_normalised=bool(config.get("norm_topk_prob", True)),
        scale=config.get("routed_scaling_factor", 2.5),
        groups=config.get("n_group") or 1,
        top_groups=config.get("topk_group") or 1,
        has_bias=True,
    )
    part = config.get("partial_rotary_factor") or config.get("rotary_dim", 0) / _head_dim(config) or 0.5
    sizes = {"rope_theta": 600000.0} | dict(config) | {"partial_rotary_factor": part}
    return llama(sizes, context) | {"qk_norm": "head", "routing": routing}


_NEMOTRON_ONLY: dict[str, tuple[Any, ...]] = {
    "dlm_paradigm": ("bidirectional", "sbd_block_diff", "autoregressive", None),  # block_diff reads text in blocks
    "dlm_type": ("llada", None),  # dream: masks speak of the next place
    "sliding_window": (None,),
}


def _nemotron(config: Config, context: int) -> dict[str, Any]:
    """Ministral 3 as a Llama: its queries grow with their position, in a context that is longer than they began with.

    Source: `Ministral3Attention` of transformers. Unless a longer context is asked for, none of them grows.
    """
    _only("Nemotron-Labs-Diffusion", config, _NEMOTRON_ONLY)
    found, rope = llama(config, context), config.get("rope_parameters") or {}
    beta = float(rope.get("llama_4_scaling_beta") or 0)
    most = int(rope.get("original_max_position_embeddings") or config["max_position_embeddings"])
    if not beta or 0 < context <= most:
        return found
    if not context:
        return found | {"max_positions": min(found["max_positions"], most)}
    return found | {"query_growth": beta, "query_period": most}


def _head_dim(config: Config) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


_LLADA_NAMES = {
    "attn_norm": "blocks.{}.attn_norm",
    "q": "blocks.{}.q_proj",
    "k": "blocks.{}.k_proj",
    "v": "blocks.{}.v_proj",
    "o": "blocks.{}.attn_out",
    "mlp_norm": "blocks.{}.ff_norm",
    "gate": "blocks.{}.ff_proj",
    "up": "blocks.{}.up_proj",
    "down": "blocks.{}.ff_out",
}
_LLADA_OUTER = {"embed": "wte", "final_norm": "ln_f", "head": "model.transformer.ff_out"}

_EXPERTS = {
    "router": "layers.{}.mlp.gate",
    "expert_gate": "layers.{}.mlp.experts.{}.gate_proj",
    "expert_up": "layers.{}.mlp.experts.{}.up_proj",
    "expert_down": "layers.{}.mlp.experts.{}.down_proj",
}
_LLADA2_NAMES = LLAMA_NAMES | {
    "q_norm": "layers.{}.attention.query_layernorm",
    "k_norm": "layers.{}.attention.key_layernorm",
    "qkv": "layers.{}.attention.query_key_value",
    "o": "layers.{}.attention.dense",
    "router_bias": "layers.{}.mlp.gate.expert_bias",
    "shared_gate": "layers.{}.mlp.shared_experts.gate_proj",
    "shared_up": "layers.{}.mlp.shared_experts.up_proj",
    "shared_down": "layers.{}.mlp.shared_experts.down_proj",
}

DIFFUSION: dict[str, Family] = {
    "llada": Family(_llada, _LLADA_NAMES, _LLADA_OUTER, prefixes=("model.transformer.",)),
    "Dream": Family(qwen2, LLAMA_NAMES, OUTER_NAMES),  # DiffuCoder as well
    "Dream-Reasoner": Family(qwen3, LLAMA_NAMES | QK_NAMES, OUTER_NAMES),
    "Fast_dLLM_Qwen": Family(qwen2, LLAMA_NAMES, OUTER_NAMES),
    "sdar": Family(qwen3, LLAMA_NAMES | QK_NAMES, OUTER_NAMES),  # TraDo as well
    "sdar_moe": Family(_sdar_moe, LLAMA_NAMES | QK_NAMES | _EXPERTS, OUTER_NAMES),
    "llada_moe": Family(_llada_moe, LLAMA_NAMES | QK_NAMES | _EXPERTS, OUTER_NAMES),
    "llada2_moe": Family(_llada2, _LLADA2_NAMES | _EXPERTS, OUTER_NAMES | {"embed": "word_embeddings"}),
    "nemotron_labs_diffusion": Family(
        _nemotron,
        LLAMA_NAMES,
        OUTER_NAMES | {"head": "diffusion_head"},
        prefixes=("encoder.",),
        attentions=("causal", "causal-block"),
    ),
    "outpace_masked_llama": Family(llama, LLAMA_NAMES, OUTER_NAMES),
}
