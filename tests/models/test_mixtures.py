"""Masked mixtures of experts in their files' own layouts, against a forward by hand, token by token, in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from outpace.api.engine import LanguageModel
from outpace.errors import ModelError
from outpace.models.card import read_card
from outpace.models.loading import load_model

MASK, VOCAB, HIDDEN, HEADS, KV, DIM, LAYERS = 60, 61, 32, 4, 2, 8, 3
SHARED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "head_dim": DIM,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "mask_token_id": MASK,
    "tie_word_embeddings": False,
    "num_experts": 8,
    "num_experts_per_tok": 3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "sdar": SHARED
    | {"model_type": "sdar_moe", "architectures": ["SDARMoeForCausalLM"], "moe_intermediate_size": 12}
    | {"intermediate_size": 40, "norm_topk_prob": True, "rope_theta": 1000000.0, "block_size": 4}
    | {"decoder_sparse_step": 1, "mlp_only_layers": []},
    "llada": SHARED
    | {"model_type": "llada", "architectures": ["LLaDAMoEModelLM"], "expert_intermediate_size": 12}
    | {"dense_intermediate_size": 40, "shared_expert_intermediate_size": None, "moe_layer_freq": [1] * LAYERS}
    | {"norm_topk_prob": None, "qk_layernorm": True, "rope_theta": 50000, "attention_bias": False},
    "llada2": SHARED
    | {"model_type": "llada2_moe", "architectures": ["LLaDA2MoeModelLM"], "moe_intermediate_size": 12}
    | {"intermediate_size": 40, "n_group": 4, "topk_group": 2, "num_shared_experts": 1, "first_k_dense_replace": 1}
    | {"norm_topk_prob": True, "routed_scaling_factor": 2.5, "score_function": "sigmoid", "rope_theta": 600000}
    | {"partial_rotary_factor": 0.5, "moe_router_enable_expert_bias": True, "use_qkv_bias": False, "block_size": 8},
}
BLOCK = {"sdar": 4, "llada": 0, "llada2": 8}


def tensors_of(name: str) -> dict[str, Tensor]:
    """Random tensors under the names that the family's files have."""
    generator = torch.Generator().manual_seed(3)

    def new(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * (0.8 / math.sqrt(shape[-1]))

    is_two = name == "llada2"
    found = {f"model.{'word_embeddings' if is_two else 'embed_tokens'}.weight": 4 * new(VOCAB, HIDDEN)}
    found |= {"model.norm.weight": 1 + new(HIDDEN), "lm_head.weight": 6 * new(VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{start}{norm}.weight"] = 1 + new(HIDDEN)
        sizes = {"q": HEADS * DIM, "k": KV * DIM, "v": KV * DIM}
        if is_two:
            found[f"{start}attention.query_key_value.weight"] = 4 * new(sum(sizes.values()), HIDDEN)
            found[f"{start}attention.dense.weight"] = 3 * new(HIDDEN, HEADS * DIM)
            norms = ("attention.query_layernorm", "attention.key_layernorm")
        else:
            found |= {f"{start}self_attn.{part}_proj.weight": 4 * new(size, HIDDEN) for part, size in sizes.items()}
            found[f"{start}self_attn.o_proj.weight"] = 3 * new(HIDDEN, HEADS * DIM)
            norms = ("self_attn.q_norm", "self_attn.k_norm")
        found |= {f"{start}{norm}.weight": 2.5 + new(DIM) for norm in norms}  # sharp: what is seen differs by place
        parts = {f"experts.{expert}.": 12 for expert in range(8)}
        if is_two and layer == 0:
            parts = {"": 40}
        else:
            found[f"{start}mlp.gate.weight"] = 3 * new(8, HIDDEN)
            if is_two:
                found[f"{start}mlp.gate.expert_bias"] = 0.3 * new(8)
                parts["shared_experts."] = 12
        for part, width in parts.items():
            found[f"{start}mlp.{part}gate_proj.weight"] = 3 * new(width, HIDDEN)
            found[f"{start}mlp.{part}up_proj.weight"] = 3 * new(width, HIDDEN)
            found[f"{start}mlp.{part}down_proj.weight"] = 3 * new(HIDDEN, width)
    return found


@pytest.fixture(params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def write(folder: Path, name: str, tensors: dict[str, Tensor] | None = None, **settings: Any) -> Path:
    save_file(tensors or tensors_of(name), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIGS[name] | settings))
    return folder


# The forward by hand


def normed(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean() + 1e-6).sqrt() * weight


def turned(x: Tensor, place: int, size: int, base: float) -> Tensor:
    """One head [D], its first `size` dimensions turned by hand, pair (i, i + size / 2) by place * base^(-2i / size)."""
    out = x.clone()
    for i in range(size // 2):
        angle = place * base ** (-2 * i / size)
        low, high = x[i], x[i + size // 2]
        out[i] = low * math.cos(angle) - high * math.sin(angle)
        out[i + size // 2] = high * math.cos(angle) + low * math.sin(angle)
    return out


def gated(x: Tensor, weights: dict[str, Tensor], start: str) -> Tensor:
    gate, up = weights[start + "gate_proj.weight"] @ x, weights[start + "up_proj.weight"] @ x
    return weights[start + "down_proj.weight"] @ (gate * gate.sigmoid() * up)


def mixed(x: Tensor, weights: dict[str, Tensor], start: str, name: str) -> Tensor:
    """Experts of one token: chosen by sorting, as the papers say it."""
    scores = weights[start + "gate.weight"] @ x
    if name == "llada2":
        scores = scores.sigmoid()
        choice = (scores + weights[start + "gate.expert_bias"]).tolist()
        worth = [sum(sorted(choice[2 * g : 2 * g + 2])) for g in range(4)]
        best = sorted(range(4), key=lambda g: -worth[g])[:2]
        allowed = [expert for expert in range(8) if expert // 2 in best]
    else:
        scores = scores.exp() / scores.exp().sum()
        choice, allowed = scores.tolist(), list(range(8))
    chosen = sorted(allowed, key=lambda expert: -choice[expert])[:3]
    total = 1.0 if name == "llada" else sum(float(scores[expert]) for expert in chosen)
    factor = 2.5 / total if name == "llada2" else 1 / total
    out = sum(float(scores[expert]) * factor * gated(x, weights, f"{start}experts.{expert}.") for expert in chosen)
    assert isinstance(out, Tensor)
    return out + gated(x, weights, start + "shared_experts.") if name == "llada2" else out


def by_hand(name: str, ids: list[int]) -> Tensor:
    """Logits [T, V] of a text, one token after the other."""
    weights, block, size = tensors_of(name), BLOCK[name] or len(ids), len(ids)
    turning, base = (4, 600000.0) if name == "llada2" else (8, 50000.0 if name == "llada" else 1000000.0)
    two = name == "llada2"
    table = weights["model.word_embeddings.weight" if two else "model.embed_tokens.weight"]
    states = [table[token] for token in ids]
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        own = start + ("attention." if two else "self_attn.")
        if two:
            q, k, v = weights[own + "query_key_value.weight"].split([HEADS * DIM, KV * DIM, KV * DIM])
            out, norms = weights[own + "dense.weight"], ("query_layernorm", "key_layernorm")
        else:
            q, k, v = (weights[f"{own}{part}_proj.weight"] for part in "qkv")
            out, norms = weights[own + "o_proj.weight"], ("q_norm", "k_norm")
        read = [normed(x, weights[start + "input_layernorm.weight"]) for x in states]
        scales = [weights[f"{own}{norm}.weight"] for norm in norms]
        queries = [
            [turned(normed(h, scales[0]), t, turning, base) for h in (q @ x).view(HEADS, DIM)]
            for t, x in enumerate(read)
        ]
        keys = [
            [turned(normed(h, scales[1]), t, turning, base) for h in (k @ x).view(KV, DIM)] for t, x in enumerate(read)
        ]
        values = [(v @ x).view(KV, DIM) for x in read]
        after = []
        for t in range(size):
            seen = [s for s in range(size) if s // block <= t // block]
            heads = []
            for head in range(HEADS):
                kv = head // (HEADS // KV)
                law = torch.stack([queries[t][head] @ keys[s][kv] / math.sqrt(DIM) for s in seen]).softmax(0)
                heads.append(sum(law[i] * values[s][kv] for i, s in enumerate(seen)))
            x = states[t] + out @ torch.cat(heads)
            fed = normed(x, weights[start + "post_attention_layernorm.weight"])
            is_dense = two and layer == 0
            mlp = gated(fed, weights, start + "mlp.") if is_dense else mixed(fed, weights, start + "mlp.", name)
            after.append(x + mlp)
        states = after
    head = weights["lm_head.weight"]
    return torch.stack([head @ normed(x, weights["model.norm.weight"]) for x in states])


def test_logits_equal_the_forward_by_hand(name: str, tmp_path: Path) -> None:
    ids = torch.randint(0, MASK, (12,), generator=torch.Generator().manual_seed(5)).tolist()
    ids[3::4] = [MASK] * 3
    model = load_model(write(tmp_path, name), "float64")
    tokens = torch.tensor([ids])
    found = model.score(tokens, torch.arange(12)[None], None, model.new_cache(1, 12)).logits[0]
    expected = by_hand(name, ids)
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-12
    rough = load_model(tmp_path, "float32")
    near = rough.score(tokens, torch.arange(12)[None], None, rough.new_cache(1, 12)).logits[0]
    assert float((near - expected).abs().max() / expected.abs().max()) <= 1e-4


def test_texts_are_those_of_the_forward_by_hand(name: str, tmp_path: Path) -> None:
    """The surest place of the block first, one token per step."""
    lm = LanguageModel(load_model(write(tmp_path, name), "float64"))
    prompt, count = [7, 8, 9, 10, 11, 12, 13, 14], 8
    text, size = prompt + [MASK] * count, BLOCK[name] or 32
    while MASK in text:
        begin = text.index(MASK)
        stop = min((begin // size + 1) * size, len(text)) if BLOCK[name] else len(text)
        laws = by_hand(name, text[:stop])
        laws[:, MASK] = -math.inf
        chance, token = laws.softmax(-1).max(-1)
        place = max((t for t in range(begin, stop) if text[t] == MASK), key=lambda t: float(chance[t]))
        text[place] = int(token[place])
    found = lm.generate(prompt, method="masked-diffusion", max_tokens=count)
    assert found.tokens == text[len(prompt) :]
    assert len(set(found.tokens)) >= 3
    for method in ("fast-dllm", "freedave"):
        assert len(lm.generate(prompt, method=method, max_tokens=count).tokens) == count
    assert lm.generate(prompt, method="freedave", max_tokens=count).tokens == found.tokens


def test_every_tensor_is_used_and_none_may_lack(name: str, tmp_path: Path) -> None:
    tensors = tensors_of(name)
    lacking = next(key for key in tensors if key.endswith("2.mlp.experts.5.up_proj.weight"))
    rest = {key: value for key, value in tensors.items() if key != lacking}
    with pytest.raises(ModelError, match=r"experts\.5\.up_proj"):
        load_model(write(tmp_path, name, rest), "float64")
    with pytest.raises(ModelError, match=r"experts\.8\."):
        more = {"model.layers.2.mlp.experts.8.up_proj.weight": torch.zeros(12, HIDDEN)}
        load_model(write(tmp_path, name, tensors | more), "float64")


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("sdar", "decoder_sparse_step", 2),
        ("sdar", "mlp_only_layers", [1]),
        ("llada", "shared_expert_intermediate_size", 12),
        ("llada", "score_function", "sigmoid"),
        ("llada", "moe_layer_freq", [0, 1, 1]),
        ("llada2", "score_function", "softmax"),
        ("llada2", "moe_router_enable_expert_bias", False),
        ("llada2", "use_qkv_bias", True),
    ],
)
def test_settings_that_nobody_computes_are_refused_by_name(name: str, setting: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no native loader") as caught:
        load_model(write(tmp_path, name, **{setting: value}))
    assert setting in caught.value.hint


@pytest.mark.parametrize("wrong", [{"num_experts_per_tok": 9}, {"n_group": 3}, {"n_group": 8}, {"topk_group": 1}])
def test_routes_that_cannot_be_are_refused(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"experts|Groups"):
        load_model(write(tmp_path, "llada2", **wrong))


def test_cards() -> None:
    cards = {name: read_card(config | {"vocab_size": 157184}) for name, config in CONFIGS.items()}
    assert [cards[name].attention for name in CONFIGS] == ["block", "full", "block"]
    assert [cards[name].block_length for name in CONFIGS] == [4, 0, 8]
    assert [cards[name].family for name in CONFIGS] == ["sdar_moe", "llada_moe", "llada2_moe"]
    bare = {"model_type": "llada2_moe", "vocab_size": 157184}
    assert (read_card(bare).block_length, read_card(bare).mask_id) == (32, 156895)
