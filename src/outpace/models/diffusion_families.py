"""The masked families: bodies of Llama, Qwen2 and Qwen3 under other names, decoded as their cards say.

Only the body is described here; attention, shift, mask token and blocks come from `outpace.models.card`.

Papers: Nie et al. (2025), arXiv 2502.09992 (LLaDA); Ye et al. (2025), arXiv 2508.15487 (Dream); Cheng et al. (2025),
    arXiv 2510.06303 (SDAR); Wu et al. (2025), arXiv 2509.26328 (Fast-dLLM v2).
"""

from __future__ import annotations

from typing import Any

from outpace.errors import ModelError
from outpace.models.families import LLAMA_NAMES, OUTER_NAMES, QK_NAMES, Config, Family, llama, qwen2, qwen3

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
    _refuse_mixture(config)
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


def _refuse_mixture(config: Config) -> None:
    """LLaDA-MoE says `model_type` llada as well, but its layers are mixtures of experts."""
    names = config.get("architectures") or ()
    if "num_experts" in config or any("moe" in name.lower() for name in names):
        raise ModelError(
            "This is LLaDA-MoE, a mixture of experts, which has no native loader.",
            hint="Use a dense LLaDA (architecture LLaDAModelLM), such as LLaDA-8B or LLaDA 1.5.",
        )


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

DIFFUSION: dict[str, Family] = {
    "llada": Family(_llada, _LLADA_NAMES, _LLADA_OUTER, prefixes=("model.transformer.",)),
    "Dream": Family(qwen2, LLAMA_NAMES, OUTER_NAMES),  # DiffuCoder as well
    "Dream-Reasoner": Family(qwen3, LLAMA_NAMES | QK_NAMES, OUTER_NAMES),
    "Fast_dLLM_Qwen": Family(qwen2, LLAMA_NAMES, OUTER_NAMES),
    "sdar": Family(qwen3, LLAMA_NAMES | QK_NAMES, OUTER_NAMES),  # TraDo as well
    "outpace_masked_llama": Family(llama, LLAMA_NAMES, OUTER_NAMES),
}
