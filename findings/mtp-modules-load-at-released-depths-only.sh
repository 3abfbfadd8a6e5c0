#!/bin/sh
# transformers finds the multi-token module of a GLM-4-MoE checkpoint only if the model is as deep as one that was released.
#
# Expected: `generate(use_mtp=True)` reads the module from `model.layers.L`, L being the number of layers that config.json
#   names, as `num_nextn_predict_layers` says there is one. So any depth works: pruned, distilled or small test models.
# Seen: at 46 layers, a released depth, it is read and drafts. At 4 layers, the same tensors one behind the last layer, all
#   of them are reported missing and generating stops with a RuntimeError: names of modules are told by patterns that hold
#   the released numbers (92 and 46 here, 61 for DeepSeek-V3, 47 for GLM-4-MoE-Lite).
# Versions: transformers 5.23.0, torch 2.13.0. Date: 2026-11-28.
. "$(dirname "$0")/common.sh"
prepare torch==2.13.0 transformers==5.23.0
see <<'PY'
import tempfile
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Glm4MoeConfig

def outcome(depth: int) -> str:
    torch.manual_seed(0)
    config = Glm4MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=depth, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_group=2, topk_group=1,
        n_shared_experts=1, first_k_dense_replace=1, num_nextn_predict_layers=1, max_position_embeddings=128,
    )
    folder = tempfile.mkdtemp()
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tensors = load_file(f"{folder}/model.safetensors")
    # The module: a copy of the last layer, and the parts that join a token's embedding to the state before it.
    last, own = f"model.layers.{depth - 1}.", f"model.layers.{depth}."
    tensors |= {own + name.removeprefix(last): t.clone() for name, t in tensors.items() if name.startswith(last)}
    tensors |= {own + name: torch.ones(32) for name in ("enorm.weight", "hnorm.weight", "shared_head.norm.weight")}
    tensors[own + "eh_proj.weight"] = torch.randn(32, 64) / 8
    tensors[own + "shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    tensors[own + "embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, f"{folder}/model.safetensors", {"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(folder)
    try:
        model.generate(torch.tensor([[1, 2, 3, 4]]), max_new_tokens=6, do_sample=False, use_mtp=True)
    except RuntimeError as error:
        return "RuntimeError: " + ("weights are missing" if "weights are missing" in str(error) else str(error)[:200])
    return "drafts"

seen = {depth: outcome(depth) for depth in (46, 4)}
for depth, what in seen.items():
    print(f"{depth} layers: {what}")
assert seen == {46: "drafts", 4: "RuntimeError: weights are missing"}, seen
PY
