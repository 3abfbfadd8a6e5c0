"""Small random checkpoints with multi-token modules, in the layouts of the families that ship them.

The main model and the modules' layers are written by transformers itself; only names are changed then.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
}
HEADS = SIZES | {"head_dim": 8}
SPARSE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 2, "topk_group": 1}
ROUTED = SPARSE | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
GATED = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
NEXT = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
MIXED = {"layer_types": ["linear_attention", "full_attention"]}

CONFIGS: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "deepseek": lambda: hf.DeepseekV3Config(**SIZES | {"num_key_value_heads": 4}, **ROUTED, **MLA),
    "glm": lambda: hf.Glm4MoeConfig(**HEADS, **ROUTED),
    "qwen3-next": lambda: hf.Qwen3NextConfig(**HEADS, **GATED, **NEXT, **MIXED),
    "qwen3.5": lambda: hf.Qwen3_5TextConfig(**HEADS, **GATED, **MIXED),
    "exaone": lambda: hf.ExaoneMoeConfig(**HEADS, **SPARSE, num_experts=4, num_shared_experts=1),
    "mimo": lambda: hf.Qwen2Config(**SIZES),
    "generic": lambda: hf.LlamaConfig(**SIZES),
}


@dataclass
class Written:
    """A checkpoint, its main model, its modules' layers, and what else the modules hold."""

    path: Path
    main: Any
    ones: list[Any]
    parts: list[dict[str, Tensor]]

    def state(self, k: int, tokens: Tensor, hidden: Tensor, hidden_first: bool, zero_first: bool) -> Tensor:
        """Return module k's states [1, T, hidden] of tokens and states side by side, all computed anew."""
        norm, part = copy.deepcopy(self.main.model.norm), self.parts[k]
        embedded = self.main.get_input_embeddings()(tokens).clone()
        if zero_first:
            embedded[:, 0] = 0
        pair = []
        for name, x in (("token_norm", embedded), ("hidden_norm", hidden)):
            norm.weight.data.copy_(part[name])
            pair.append(norm(x))
        inputs = torch.cat(pair[::-1] if hidden_first else pair, -1) @ part["project"].T
        return self.ones[k].model(inputs_embeds=inputs, use_cache=False).last_hidden_state


def write(kind: str, path: Path, count: int = 1, dtype: torch.dtype = torch.float64) -> Written:
    """Write a checkpoint of a kind with `count` modules."""
    torch.manual_seed(len(kind))
    config = CONFIGS[kind]()
    maker = hf.AutoModelForCausalLM
    main = maker.from_config(config).to(dtype).eval()
    single = copy.deepcopy(config)
    single.num_hidden_layers = 1
    for name, value in {"layer_types": ["full_attention"], "mlp_layer_types": ["sparse"]}.items():
        if getattr(single, name, None) is not None:
            setattr(single, name, value)
    if hasattr(single, "first_k_dense_replace"):
        single.first_k_dense_replace = 0
    ones = [maker.from_config(single).to(dtype).eval() for _ in range(count)]
    width, parts, shared = SIZES["hidden_size"], [], {}
    with torch.no_grad():
        for model in (main, *ones):
            for name, weight in model.named_parameters():
                weight.normal_(0, 0.5 if weight.dim() == 1 else 0.2)
                if weight.dim() == 1 and "norm" in name and "qwen3" not in kind:
                    weight += 1
    for one in ones:
        part = {"token_norm": torch.rand(width), "hidden_norm": torch.rand(width)}
        part |= {"project": torch.randn(width, 2 * width) / 8, "norm": one.model.norm.weight.detach().clone()}
        parts.append({name: tensor.to(dtype) for name, tensor in part.items()})
    if kind in ("qwen3-next", "qwen3.5", "exaone"):  # they keep one set beside all layers
        parts = [parts[0]] * count
        for one in ones[1:]:
            one.model.norm.load_state_dict(ones[0].model.norm.state_dict())
    if hasattr(main, "set_experts_implementation"):
        for model in (main, *ones):
            model.set_experts_implementation("eager")
    stored = _stored(main, path)
    for k, one in enumerate(ones):
        block = {
            n.removeprefix("model.layers.0."): t
            for n, t in _stored(one, path).items()
            if n.startswith("model.layers.0.")
        }
        stored |= _named(kind, k, block, parts[k], stored)
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in (stored | shared).items()}, path / "model.safetensors"
    )
    found = json.loads((path / "config.json").read_text(encoding="utf-8"))
    found |= {"num_hidden_layers": SIZES["num_hidden_layers"], **_settings(config)}
    found |= {"model_type": "mimo", "architectures": ["MiMoForCausalLM"]} if kind == "mimo" else {}
    found |= {"num_nextn_predict_layers": count, "mtp_num_hidden_layers": count}
    (path / "config.json").write_text(json.dumps(found), encoding="utf-8")
    return Written(path, main, ones, parts)


def _settings(config: Any) -> dict[str, Any]:
    names = ("layer_types", "mlp_layer_types", "first_k_dense_replace")
    return {name: getattr(config, name) for name in names if getattr(config, name, None) is not None}


def _stored(model: Any, path: Path) -> dict[str, Tensor]:
    model.save_pretrained(path)
    return load_file(path / "model.safetensors")


def _named(
    kind: str, k: int, block: dict[str, Tensor], part: dict[str, Tensor], main: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return a module's tensors under the names of its family's files."""
    home, inner = f"model.layers.{SIZES['num_hidden_layers'] + k}.", ""
    names = {"token_norm": "enorm", "hidden_norm": "hnorm", "project": "eh_proj", "norm": "shared_head.norm"}
    more = {}
    if kind == "mimo":
        home = f"model.mtp_layers.{k}."
        names = {"token_norm": "token_layernorm", "hidden_norm": "hidden_layernorm", "project": "input_proj"}
        names["norm"] = "final_layernorm"
    elif kind == "generic":
        home, inner, names = f"layers.{k}.", "mtp_block.", names | {"norm": "post_norm"}
    elif kind in ("deepseek", "glm"):
        more = {"embed_tokens": main["model.embed_tokens.weight"], "shared_head.head": main["lm_head.weight"]}
    else:
        home = f"mtp.layers.{k}."
        names = {
            "token_norm": "pre_fc_norm_embedding",
            "hidden_norm": "pre_fc_norm_hidden",
            "project": "fc",
            "norm": "norm",
        }
        outer = {f"mtp.{name}.weight": part[role] for role, name in names.items()}
        return outer | {home + name: tensor for name, tensor in block.items()}
    own = {names[role]: tensor for role, tensor in part.items()} | more
    return {f"{home}{name}.weight": tensor for name, tensor in own.items()} | {
        home + inner + n: t for n, t in block.items()
    }
