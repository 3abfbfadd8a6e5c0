"""Small random checkpoints in the layouts of the masked families, written by hand, each with its oracle.

The oracle is transformers' own Llama, Qwen2 or Qwen3 with the same weights, an explicit 4-D mask and explicit position
ids. It knows nothing of our families, names, cards or masks.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import save_file
from shapes import in_float64, lifted, make_model
from torch import Tensor

MASK, VOCAB = 130, 131
BODY = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 72,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000.0,
}
LLADA_NAMES = {  # ours to theirs, in the words of the files
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    "model.layers.": "model.transformer.blocks.",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.o_proj": "attn_out",
    "self_attn.": "",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}


@dataclass(frozen=True)
class Layout:
    """One checkpoint: who computes it, what its config says, who sees whom, and whether its outputs are shifted."""

    oracle: type[hf.PreTrainedConfig]
    config: dict[str, Any]
    block: int = 0  # 0 = full attention
    is_shifted: bool = False
    kv_heads: int = 6
    is_tied: bool = False
    seed: int = 3

    @property
    def is_llada(self) -> bool:
        return self.config["model_type"] == "llada"

    def written(self) -> dict[str, Any]:
        """config.json, in the family's own words."""
        if not self.is_llada:
            shared = BODY | {"num_key_value_heads": self.kv_heads, "tie_word_embeddings": self.is_tied}
            return shared | {"hidden_act": "silu"} | self.config
        return {
            "d_model": 48,
            "n_layers": 2,
            "n_heads": 6,
            "n_kv_heads": self.kv_heads,
            "mlp_hidden_size": 72,
            "mlp_ratio": 4,
            "embedding_size": VOCAB,
            "vocab_size": 126,  # what the tokenizer has; the tables have `embedding_size` rows
            "max_sequence_length": 96,
            "rms_norm_eps": 1e-6,
            "rope_theta": 5000.0,
            "weight_tying": self.is_tied,
            **LLADA_SETTINGS,
            **self.config,
        }

    def model(self) -> hf.PreTrainedModel:
        more = {"head_dim": 8} if self.oracle is hf.Qwen3Config else {}
        config = self.oracle(**BODY, num_key_value_heads=self.kv_heads, tie_word_embeddings=self.is_tied, **more)
        return make_model(config, self.seed)


LLADA_SETTINGS = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "multi_query_attention": None,
    "rope": True,
    "rope_full_precision": True,
    "scale_logits": False,
}
LLADA = {"model_type": "llada", "architectures": ["LLaDAModelLM"], "mask_token_id": MASK, "eos_token_id": 1}
DREAM = {"model_type": "Dream", "architectures": ["DreamModel"], "mask_token_id": MASK, "use_sliding_window": False}
FAST = {"model_type": "Fast_dLLM_Qwen", "architectures": ["Fast_dLLM_QwenForCausalLM"], "mask_token_id": MASK}
SDAR = {"model_type": "sdar", "architectures": ["SDARForCausalLM"], "mask_token_id": MASK, "head_dim": 8}
REASONER = DREAM | {"architectures": ["DreamForCausalLM"], "block_size": 8, "head_dim": 8}
OWN = {"model_type": "outpace_masked_llama", "architectures": ["OutpaceMaskedLlama"], "mask_token_id": MASK}
LLAMA, QWEN2, QWEN3 = hf.LlamaConfig, hf.Qwen2Config, hf.Qwen3Config

LAYOUTS = {
    "llada": Layout(LLAMA, LLADA),
    "llada-grouped-tied": Layout(LLAMA, LLADA, kv_heads=2, is_tied=True),
    "llada-biased": Layout(QWEN2, LLADA | {"include_qkv_bias": True}),
    "dream": Layout(QWEN2, DREAM, is_shifted=True, kv_heads=2),
    "dream-tied": Layout(QWEN2, DREAM, is_shifted=True, kv_heads=1, is_tied=True),
    "dream-reasoner": Layout(QWEN3, REASONER, block=8, kv_heads=2),
    "fast-dllm": Layout(QWEN2, FAST | {"bd_size": 8}, block=8, is_shifted=True, kv_heads=2, is_tied=True),
    "sdar": Layout(QWEN3, SDAR, block=4, kv_heads=2),
    "sdar-tied": Layout(QWEN3, SDAR | {"block_size": 8}, block=8, kv_heads=3, is_tied=True, seed=5),
    "own-full": Layout(LLAMA, OWN | {"attention": "full", "logits_shift": True}, is_shifted=True, kv_heads=2),
    "own-block": Layout(LLAMA, OWN | {"attention": "block", "block_length": 5}, block=5, kv_heads=2, is_tied=True),
}
FULL = [name for name, layout in LAYOUTS.items() if not layout.block]
BLOCKED = [name for name, layout in LAYOUTS.items() if layout.block]


@functools.cache
def written(name: str, root: Path) -> tuple[Path, hf.PreTrainedModel]:
    """Write a checkpoint below `root` once; return its directory and its float64 oracle."""
    layout, directory = LAYOUTS[name], root / f"masked-{name}"
    directory.mkdir()
    model = layout.model()
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    if layout.is_tied:
        tensors.pop("lm_head.weight")
    if layout.is_llada:
        tensors = {renamed(key): value for key, value in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(layout.written()))
    return directory, lifted(model)


def renamed(name: str) -> str:
    for ours, theirs in LLADA_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def oracle_logits(name: str, model: hf.PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits [B, T, V] in float64 of the token at each position; that of position 0 of a shifted model is its own."""
    logits = oracle_output(name, model, ids).logits
    return torch.cat([logits[:, :1], logits[:, :-1]], 1) if LAYOUTS[name].is_shifted else logits


def oracle_output(name: str, model: hf.PreTrainedModel, ids: Tensor, **more: Any) -> Any:
    """What transformers returns in float64 under the layout's mask, nothing shifted."""
    layout, size = LAYOUTS[name], ids.shape[1]
    place = torch.arange(size)
    block = place // layout.block if layout.block else torch.zeros_like(place)
    is_seen = block[None, :] <= block[:, None]
    mask = torch.zeros(size, size, dtype=torch.float64).masked_fill(~is_seen, float("-inf"))
    rows = len(ids)
    with in_float64(), torch.no_grad():
        return model(
            ids,
            attention_mask=mask.expand(rows, 1, size, size),
            position_ids=place.expand(rows, size),
            use_cache=False,
            **more,
        )
