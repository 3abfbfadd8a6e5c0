"""The causal families: how each one's `config.json` becomes a `Spec`, and what each one calls its tensors.

A family is a function and a name map. Names are relative to a prefix; `{}` stands for the layer. A projection's
bias is asked for where the spec says that it has one. Defaults are those that apply when a file leaves a key out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from outpace.errors import ModelError
from outpace.models.rope import make_rope, rope_settings, stretched

__all__ = [
    "CAUSAL",
    "LLAMA_NAMES",
    "OUTER_NAMES",
    "QK_NAMES",
    "Config",
    "Family",
    "llama",
    "qwen2",
    "qwen3",
    "read_activation",
]

Config = Mapping[str, Any]

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
ROTARY_BUFFERS = (r"rotary_emb\.inv_freq$",)


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture.

    Attributes:
        fields: makes the keyword arguments of `Spec` from a config and the longest text of the run (0 = the model's).
        layer: tensor names of a layer by role, without ".weight".
        outer: embed, head, final_norm, positions, project_in, project_out.
        prefixes: what may stand before every name but the head's, first match wins.
        ignored: patterns of tensors in files that no forward reads (buffers).
        is_transposed: matrices lie [in, out] (GPT-2's Conv1D).
        is_interleaved: fused query, key and value lie head by head (GPT-NeoX).
        attentions: those of a card that are computed as its makers do; empty = any.
    """

    fields: Callable[[Config, int], dict[str, Any]]
    layer: Mapping[str, str]
    outer: Mapping[str, str]
    prefixes: tuple[str, ...] = ("model.", "")
    ignored: tuple[str, ...] = ROTARY_BUFFERS
    is_transposed: bool = False
    is_interleaved: bool = False
    text_key: str = ""  # the text model's settings lie under this key
    notes: tuple[str, ...] = field(default=())
    attentions: tuple[str, ...] = ()


# Reading configurations


def _common(config: Config, context: int) -> dict[str, Any]:
    """The keys that the Llama line of families shares; rotation left out."""
    heads = config["num_attention_heads"]
    trained = config.get("max_position_embeddings", 2048)
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
        "ffn_size": config["intermediate_size"],
        "max_positions": context or trained,
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "activation": read_activation(config.get("hidden_act", "silu")),
        "tie_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def read_activation(name: str) -> str:
    """Return what a `Spec` calls an activation of a config.json; `ModelError` where it is not known."""
    if name not in ACTIVATIONS:
        raise ModelError(f"Activation {name!r} is not known here.", hint="Load it with the transformers adapter.")
    return ACTIVATIONS[name]


def _rotary(
    config: Config, common: dict[str, Any], context: int, theta: float = 10000.0, part: float = 1.0
) -> dict[str, Any]:
    """One frequency set for all layers, and the context that its scaling leads to."""
    settings = rope_settings(config, theta, part)
    trained = config.get("max_position_embeddings", common["max_positions"])
    rope = make_rope(settings, common["head_dim"], trained)
    reach = context or stretched(settings, common["max_positions"])
    return {"ropes": (rope,), "rotary_dim": 2 * len(rope.inv_freq), "max_positions": reach}


def _windows(config: Config, default: Callable[[int], bool]) -> tuple[int | None, ...]:
    """Window per layer: from `layer_types`, or where `default(layer)` holds in files that have none."""
    num_layers, window = config["num_hidden_layers"], config.get("sliding_window")
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if default(i) else "full_attention" for i in range(num_layers)]
    unknown = set(kinds) - {"sliding_attention", "full_attention"}
    if unknown:
        raise ModelError(f"Layer type {sorted(unknown)[0]!r} is not known here.")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def llama(config: Config, context: int) -> dict[str, Any]:
    """Llama: the line that most families vary."""
    common = _common(config, context)
    bias = bool(config.get("attention_bias", False))
    biases = {"qkv_bias": bias, "o_bias": bias, "mlp_bias": bool(config.get("mlp_bias", False))}
    return common | _rotary(config, common, context) | biases


def qwen2(config: Config, context: int) -> dict[str, Any]:
    """Llama with biases on query, key and value, and windows in some layers."""
    common = _common(config, context)
    first = config.get("max_window_layers", 28)
    has_window = bool(config.get("use_sliding_window", False))
    windows = _windows(config, lambda i: i >= first) if has_window else ()
    return common | _rotary(config, common, context) | {"qkv_bias": True, "windows": windows}


def qwen3(config: Config, context: int) -> dict[str, Any]:
    """Qwen2 with a norm over each query and key head in place of the biases."""
    bias = bool(config.get("attention_bias", False))
    shape = qwen2({"head_dim": 128} | dict(config), context)
    return shape | {"qkv_bias": bias, "o_bias": bias, "qk_norm": "head"}


def _mistral(config: Config, context: int) -> dict[str, Any]:
    common = _common({"max_position_embeddings": 131072} | dict(config), context)
    has_window = config.get("sliding_window", 4096) is not None
    windows = _windows({"sliding_window": 4096} | dict(config), lambda i: has_window)
    return common | _rotary(config, common, context) | {"windows": windows}


def _phi3(config: Config, context: int) -> dict[str, Any]:
    settings = rope_settings(config)
    if settings["rope_type"] == "yarn":  # as its first files called long-rope
        settings["rope_type"] = "longrope"
    config = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096} | dict(config)
    common = _common(config, context)
    part = {"rope_parameters": settings, "rope_scaling": None}
    windows = _windows({"sliding_window": None} | config, lambda i: True)
    return common | _rotary(config | part, common, context) | {"windows": windows}


def _smollm3(config: Config, context: int) -> dict[str, Any]:
    config = {"max_position_embeddings": 32768, "tie_word_embeddings": True, "num_key_value_heads": 4} | dict(config)
    common = _common(config, context)
    every = config.get("no_rope_layer_interval", 4)
    turns = config.get("no_rope_layers")
    if turns is None:
        turns = [int((i + 1) % every != 0) for i in range(common["num_layers"])]
    bias = bool(config.get("attention_bias", False))
    has_window = bool(config.get("use_sliding_window", False))
    return (
        common
        | _rotary(config, common, context, 2000000.0)
        | {
            "rope_index": tuple(0 if turn else -1 for turn in turns),
            "windows": _windows(config, lambda i: not turns[i]) if has_window else (),
            "qkv_bias": bias,
            "o_bias": bias,
            "mlp_bias": bool(config.get("mlp_bias", False)),
        }
    )


def _olmo2(config: Config, context: int) -> dict[str, Any]:
    config = {"rms_norm_eps": 1e-5} | dict(config)
    common = _common(config, context)
    bias = bool(config.get("attention_bias", False))
    extra = {"norm_placement": "post", "qk_norm": "full", "qkv_bias": bias, "o_bias": bias}
    return common | _rotary(config, common, context) | extra


def _gemma2(config: Config, context: int) -> dict[str, Any]:
    config = _gemma_defaults({"max_position_embeddings": 8192, "sliding_window": 4096} | dict(config))
    common = _common(config, context)
    return (
        common
        | _rotary(config, common, context)
        | _gemma(config, common)
        | {
            "windows": _windows(config, lambda i: i % 2 == 0),
            "attn_softcap": config.get("attn_logit_softcapping", 50.0) or 0.0,
            "final_softcap": config.get("final_logit_softcapping", 30.0) or 0.0,
        }
    )


def _gemma3(config: Config, context: int) -> dict[str, Any]:
    config = _gemma_defaults({"max_position_embeddings": 131072, "sliding_window": 4096} | dict(config))
    if config.get("use_bidirectional_attention"):
        raise ModelError("Bidirectional Gemma 3 is an encoder, not a decoder.")
    common = _common(config, context)
    every = config.get("sliding_window_pattern", 6)
    windows = _windows(config, lambda i: bool((i + 1) % every))
    local, full = _gemma3_settings(config)
    trained = config["max_position_embeddings"]
    ropes = tuple(make_rope(s, common["head_dim"], trained) for s in (full, local))
    return (
        common
        | _gemma(config, common)
        | {
            "ropes": ropes,
            "rotary_dim": 2 * len(ropes[0].inv_freq),
            "rope_index": tuple(0 if window is None else 1 for window in windows),
            "windows": windows,
            "qk_norm": "head",
            "attn_softcap": config.get("attn_logit_softcapping") or 0.0,
            "final_softcap": config.get("final_logit_softcapping") or 0.0,
        }
    )


def _gemma3_settings(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rotary settings of windowed and of full layers; scaling applies to full layers only."""
    found = config.get("rope_parameters") or {}
    local, full = dict(found.get("sliding_attention") or {}), dict(found.get("full_attention") or {})
    full |= config.get("rope_scaling") or {}
    local.setdefault("rope_theta", config.get("rope_local_base_freq", 10000.0))
    full.setdefault("rope_theta", config.get("rope_theta", 1000000.0))
    base = {"max_position_embeddings": config["max_position_embeddings"]}
    return rope_settings(base | {"rope_parameters": local}), rope_settings(base | {"rope_parameters": full})


def _gemma_defaults(config: Config) -> dict[str, Any]:
    defaults = {"head_dim": 256, "num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True}
    sizes = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "vocab_size": 262208}
    activation = config.get("hidden_activation") or config.get("hidden_act") or "gelu_pytorch_tanh"
    return defaults | sizes | dict(config) | {"hidden_act": activation}


def _gemma(config: Config, common: dict[str, Any]) -> dict[str, Any]:
    bias = bool(config.get("attention_bias", False))
    return {
        "norm_offset": 1.0,
        "norm_placement": "sandwich",
        "attn_scale": config.get("query_pre_attn_scalar", 256) ** -0.5,
        "embed_scale": common["hidden_size"] ** 0.5,
        "qkv_bias": bias,
        "o_bias": bias,
    }


def _gpt2(config: Config, context: int) -> dict[str, Any]:
    if config.get("scale_attn_by_inverse_layer_idx"):
        raise ModelError("GPT-2 with scores scaled by layer is not known here.", hint="Use the transformers adapter.")
    hidden, heads = config["n_embd"], config["n_head"]
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": hidden,
        "num_layers": config["n_layer"],
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hidden // heads,
        "ffn_size": config.get("n_inner") or 4 * hidden,
        "max_positions": _within(context, config.get("n_positions", 1024)),
        "norm": "layer",
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "has_norm_bias": True,
        "activation": read_activation(config.get("activation_function", "gelu_new")),
        "is_gated": False,
        "positions": "learned",
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
        "attn_scale": 0.0 if config.get("scale_attn_weights", True) else 1.0,
        "tie_embeddings": bool(config.get("tie_word_embeddings", True)),
    }


def _neox(config: Config, context: int) -> dict[str, Any]:
    common = _common(dict(config) | {"hidden_act": config.get("hidden_act", "gelu")}, context)
    has_bias = bool(config.get("attention_bias", True))
    settings = {"rope_theta": config.get("rotary_emb_base", 10000.0)} | dict(config)
    return (
        common
        | _rotary(settings, common, context, part=config.get("rotary_pct", 0.25))
        | {
            "norm": "layer",
            "norm_eps": config.get("layer_norm_eps", 1e-5),
            "has_norm_bias": True,
            "is_parallel": bool(config.get("use_parallel_residual", True)),
            "is_gated": False,
            "qkv_bias": has_bias,
            "o_bias": has_bias,
            "mlp_bias": True,
        }
    )


def _opt(config: Config, context: int) -> dict[str, Any]:
    if not config.get("layer_norm_elementwise_affine", True):
        raise ModelError("OPT without norm weights is not known here.", hint="Use the transformers adapter.")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("word_embed_proj_dim") or hidden
    is_before, has_bias = bool(config.get("do_layer_norm_before", True)), bool(config.get("enable_bias", True))
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": hidden,
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": hidden // heads,
        "ffn_size": config.get("ffn_dim", 3072),
        "max_positions": _within(context, config.get("max_position_embeddings", 2048)),
        "embed_size": 0 if width == hidden else width,
        "norm": "layer",
        "norm_eps": 1e-5,
        "has_norm_bias": True,
        "norm_placement": "pre" if is_before else "after",
        "has_final_norm": is_before and not config.get("_remove_final_layer_norm", False),
        "activation": read_activation(config.get("activation_function", "relu")),
        "is_gated": False,
        "positions": "learned",
        "position_offset": 2,
        "qkv_bias": has_bias,
        "o_bias": has_bias,
        "mlp_bias": has_bias,
        "tie_embeddings": bool(config.get("tie_word_embeddings", True)),
    }


def _within(context: int, trained: int) -> int:
    """Learned positions end where their table ends."""
    if context > trained:
        raise ModelError(f"A context of {context} tokens is longer than the {trained} learned positions.")
    return trained


# Naming tensors

_SPLIT = {"q": "layers.{}.self_attn.q_proj", "k": "layers.{}.self_attn.k_proj", "v": "layers.{}.self_attn.v_proj"}
_GATED = {"gate": "layers.{}.mlp.gate_proj", "up": "layers.{}.mlp.up_proj", "down": "layers.{}.mlp.down_proj"}
_PRE = {"attn_norm": "layers.{}.input_layernorm", "mlp_norm": "layers.{}.post_attention_layernorm"}
QK_NAMES = {"q_norm": "layers.{}.self_attn.q_norm", "k_norm": "layers.{}.self_attn.k_norm"}
LLAMA_NAMES = _SPLIT | {"o": "layers.{}.self_attn.o_proj"} | _GATED | _PRE
OUTER_NAMES = {"embed": "embed_tokens", "final_norm": "norm", "head": "lm_head"}
_SANDWICH = {
    "attn_norm": "layers.{}.input_layernorm",
    "attn_post_norm": "layers.{}.post_attention_layernorm",
    "mlp_norm": "layers.{}.pre_feedforward_layernorm",
    "mlp_post_norm": "layers.{}.post_feedforward_layernorm",
}
_OLMO2 = {
    "attn_post_norm": "layers.{}.post_attention_layernorm",
    "mlp_post_norm": "layers.{}.post_feedforward_layernorm",
}
_PHI3 = _PRE | {
    "qkv": "layers.{}.self_attn.qkv_proj",
    "o": "layers.{}.self_attn.o_proj",
    "gate_up": "layers.{}.mlp.gate_up_proj",
    "down": "layers.{}.mlp.down_proj",
}
_GPT2 = {
    "attn_norm": "h.{}.ln_1",
    "qkv": "h.{}.attn.c_attn",
    "o": "h.{}.attn.c_proj",
    "mlp_norm": "h.{}.ln_2",
    "up": "h.{}.mlp.c_fc",
    "down": "h.{}.mlp.c_proj",
}
_NEOX = _PRE | {
    "qkv": "layers.{}.attention.query_key_value",
    "o": "layers.{}.attention.dense",
    "up": "layers.{}.mlp.dense_h_to_4h",
    "down": "layers.{}.mlp.dense_4h_to_h",
}
_OPT = _SPLIT | {
    "o": "layers.{}.self_attn.out_proj",
    "attn_norm": "layers.{}.self_attn_layer_norm",
    "mlp_norm": "layers.{}.final_layer_norm",
    "up": "layers.{}.fc1",
    "down": "layers.{}.fc2",
}
_OPT_OUTER = {
    "embed": "embed_tokens",
    "positions": "embed_positions",
    "final_norm": "final_layer_norm",
    "project_in": "project_in",
    "project_out": "project_out",
    "head": "lm_head",
}
_GEMMA3 = LLAMA_NAMES | _SANDWICH | QK_NAMES
_IMAGES = (r"^(model\.)?vision_tower\.", r"^(model\.)?multi_modal_projector\.")  # text is all that is read

CAUSAL: dict[str, Family] = {
    "llama": Family(llama, LLAMA_NAMES, OUTER_NAMES),
    "qwen2": Family(qwen2, LLAMA_NAMES, OUTER_NAMES),
    "mimo": Family(qwen2, LLAMA_NAMES, OUTER_NAMES),
    "qwen3": Family(qwen3, LLAMA_NAMES | QK_NAMES, OUTER_NAMES),
    "mistral": Family(_mistral, LLAMA_NAMES, OUTER_NAMES),
    "gpt2": Family(
        _gpt2,
        _GPT2,
        {"embed": "wte", "positions": "wpe", "final_norm": "ln_f", "head": "lm_head"},
        prefixes=("transformer.", ""),
        ignored=(r"\.attn\.bias$", r"\.attn\.masked_bias$"),
        is_transposed=True,
    ),
    "gpt_neox": Family(
        _neox,
        _NEOX,
        {"embed": "embed_in", "final_norm": "final_layer_norm", "head": "embed_out"},
        prefixes=("gpt_neox.", ""),
        ignored=(*ROTARY_BUFFERS, r"\.attention\.bias$", r"\.attention\.masked_bias$"),
        is_interleaved=True,
    ),
    "opt": Family(_opt, _OPT, _OPT_OUTER, prefixes=("model.decoder.", "decoder.")),
    "gemma2": Family(_gemma2, LLAMA_NAMES | _SANDWICH, OUTER_NAMES),
    "gemma3_text": Family(_gemma3, _GEMMA3, OUTER_NAMES),
    "gemma3": Family(
        _gemma3,
        _GEMMA3,
        OUTER_NAMES,
        prefixes=("model.language_model.", "language_model.model.", "language_model."),
        ignored=(*ROTARY_BUFFERS, *_IMAGES),
        text_key="text_config",
    ),
    "phi3": Family(_phi3, _PHI3, OUTER_NAMES),
    "smollm3": Family(_smollm3, LLAMA_NAMES, OUTER_NAMES),
    "olmo2": Family(_olmo2, _SPLIT | _GATED | QK_NAMES | _OLMO2 | {"o": LLAMA_NAMES["o"]}, OUTER_NAMES),
}
