"""Drafter files in everyone's layouts: detected, read, tried out, refused, and written back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from obliging import HIDDEN, LAYERS, PROMPT, VOCAB, Obliging, scattered, teach
from safetensors.torch import save_file
from torch import Tensor

from outpace.api import drafter_check
from outpace.api.drafter_check import check_drafter, export_drafter
from outpace.api.engine import LanguageModel
from outpace.errors import ModelError, OutpaceError
from outpace.heads.files import save_head
from outpace.heads.model import HeadModel, new_head
from outpace.heads.net import load_kind


@pytest.fixture(autouse=True)
def one_prompt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(drafter_check, "_prompts", lambda lm: [PROMPT])
    monkeypatch.setattr(drafter_check, "_TOKENS", 12)
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))


def lay(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, file: str = "") -> Path:
    """Write a drafter's directory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    kept = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    if file:
        torch.save(kept, folder / file)
    else:
        save_file(kept, folder / "model.safetensors")
    return folder


def drafter(kind: str, target: Obliging, **settings: Any) -> tuple[HeadModel, float]:
    """A drafter with scattered weights that a target obeys, and its tokens a round."""
    model = scattered(new_head(kind, target, **settings))
    return model, teach(target, model)


def medusa_state(model: HeadModel) -> dict[str, Tensor]:
    return {name.removeprefix("heads."): tensor for name, tensor in model.net.state_dict().items()}


MEDUSA = {"medusa_num_heads": 3, "medusa_num_layers": 1, "base_model_name_or_path": "model"}


@pytest.mark.parametrize("layout", ["legacy", "new", "vllm", "vllm, one matrix"])
def test_medusa_in_each_layout(layout: str, tmp_path: Path) -> None:
    target = Obliging()
    model, expected = drafter("medusa", target, depth=3, own_output=True)
    if layout.startswith("vllm"):
        with torch.no_grad():
            for head in model.net.heads:  # type: ignore[union-attr]
                head[0].linear.bias.zero_()
                if "one" in layout:
                    head[1].weight.copy_(model.net.heads[0][1].weight)  # type: ignore[index, union-attr]
        expected = teach(target, model)
    state = medusa_state(model)
    if layout == "legacy":
        path = lay(tmp_path / "d", MEDUSA, state, file="medusa_lm_head.pt")
    elif layout == "new":
        path = lay(tmp_path / "d", MEDUSA, {f"medusa_head.{name}": tensor for name, tensor in state.items()})
    else:
        config = {"architectures": ["MedusaModel"], "model_type": "medusa", "num_heads": 3, "num_hidden_layers": 1}
        tensors = {f"blocks.{k}.layers.0.weight": state[f"{k}.0.linear.weight"] for k in range(3)}
        count = 1 if "one" in layout else 3
        tensors |= {f"lm_heads.{k}.weight": state[f"{k}.1.weight"] for k in range(count)}
        path = lay(tmp_path / "d", config, tensors)
    verdict = check_drafter(LanguageModel(target), path)
    assert verdict.kind == "medusa" and expected == pytest.approx(4)
    assert verdict.tokens_per_round == pytest.approx(expected, rel=1e-3)


def test_medusa_blocks_that_share_weights_are_written_once(tmp_path: Path) -> None:
    target = Obliging()
    model, _ = drafter("medusa", target, depth=2, blocks=2, own_output=True)
    with torch.no_grad():
        for head in model.net.heads:  # type: ignore[union-attr]
            head[1].load_state_dict(head[0].state_dict())
    expected = teach(target, model)
    state = {name: tensor for name, tensor in medusa_state(model).items() if ".1.linear" not in name}
    path = lay(tmp_path / "d", MEDUSA | {"medusa_num_heads": 5, "medusa_num_layers": 2}, state)
    verdict = check_drafter(LanguageModel(target), path)
    assert verdict.tokens_per_round == pytest.approx(expected, rel=1e-3)
    assert verdict.findings == ["The drafter's config.json says 5 heads; its file has 2."]


def llama(model: HeadModel, **more: Any) -> dict[str, Any]:
    """What a config.json says of the layers of one of our drafters."""
    own = model.net.config.settings
    return {
        "model_type": "llama",
        "hidden_size": own.get("hidden") or HIDDEN,
        "intermediate_size": own["ffn"],
        "num_hidden_layers": own.get("own_layers") or own.get("blocks"),
        "num_attention_heads": own["heads"],
        "num_key_value_heads": own["kv_heads"] or own["heads"],
        "head_dim": own["head_dim"],
        "vocab_size": VOCAB,
        "rms_norm_eps": own["eps"],
        "rope_theta": own.get("rope_theta") or own.get("theta"),
        **more,
    }


def names(state: Mapping[str, Tensor], start: str, other: str) -> dict[str, Tensor]:
    return {other + name.removeprefix(start) if name.startswith(start) else name: t for name, t in state.items()}


# What a file may leave unsaid, or say wrongly: settings of the drafter, keys of the file, and the choice.
EAGLE3: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "all said": ({"norm_before_residual": True}, {"norm_before_residual": True}, {}),
    "norm unsaid, false": ({}, {}, {"norm_before_residual": False}),
    "norm unsaid, true": ({"norm_before_residual": True}, {}, {"norm_before_residual": True}),
    "norm said wrongly": (
        {"norm_before_residual": True},
        {"norm_before_residual": False},
        {"norm_before_residual": True},
    ),
    "3.1, all said": (
        {"fc_norm": True, "norm_output": True},
        {"norm_before_residual": False, "norm_output": True},
        {"norm_output": True},
    ),
    "3.1, output unsaid": (
        {"fc_norm": True, "norm_output": False},
        {"norm_before_residual": False},
        {"norm_output": False},
    ),
    "neighbours turn": ({"is_interleaved": True}, {"norm_before_residual": False}, {"rotary pairing": "neighbours"}),
    "neighbours, said": (
        {"is_interleaved": True},
        {"norm_before_residual": False, "is_neox_style": False},
        {"rotary pairing": "neighbours"},
    ),
}


@pytest.mark.parametrize("case", EAGLE3)
def test_eagle3_finds_what_its_file_leaves_open(case: str, tmp_path: Path) -> None:
    settings, said, chosen = EAGLE3[case]
    target = Obliging()
    model, expected = drafter("eagle3", target, depth=5, heads=2, head_dim=8, **settings)
    state = names(model.net.state_dict(), "layers.0.", "midlayer.")
    config = llama(model, architectures=["LlamaForCausalLM"], draft_vocab_size=VOCAB, **said)
    path = lay(tmp_path / "d", config, state)
    verdict = check_drafter(LanguageModel(target), path)
    assert verdict.layout == f"EAGLE-3{'.1' if 'fc_norm' in settings else ''} (SpecForge, SGLang)"
    assert verdict.tokens_per_round == pytest.approx(expected, rel=1e-3) and expected > 3.5
    assert verdict.chosen == {**verdict.chosen, **chosen} and not verdict.cause
    told = " ".join(verdict.findings)
    unsaid = {"norm unsaid, false", "norm unsaid, true", "3.1, output unsaid"}
    assert ("does not say norm" in told) == (case in unsaid)
    assert ("says norm_before_residual False: True was taken" in told) == (case == "norm said wrongly")


@pytest.mark.parametrize("has_bias", [True, False])
def test_eagle_follows_its_file_about_the_bias(has_bias: bool, tmp_path: Path) -> None:
    target = Obliging()
    model, expected = drafter("eagle", target, depth=5, heads=2, head_dim=8, fc_bias=has_bias)
    config = llama(model, architectures=["LlamaForCausalLM"], bias=True)
    embedding = {"embed_tokens.weight": target.embed(torch.arange(VOCAB))}
    path = lay(tmp_path / "d", config, dict(model.net.state_dict()) | embedding, file="pytorch_model.bin")
    verdict = check_drafter(LanguageModel(target), path)
    assert (verdict.kind, verdict.layout) == ("eagle", "EAGLE")
    assert verdict.tokens_per_round == pytest.approx(expected, rel=1e-3) and verdict.findings == []


def test_eagle_with_the_state_first_is_found_out(tmp_path: Path) -> None:
    target = Obliging()
    model, expected = drafter("eagle", target, depth=5, heads=2, head_dim=8)
    state = dict(model.net.state_dict())
    first, second = state["fc.weight"].chunk(2, -1)
    state["fc.weight"] = torch.cat([second, first], -1)
    verdict = check_drafter(LanguageModel(target), lay(tmp_path / "d", llama(model), state))
    assert verdict.chosen["order of embedding and state"] == "state first"
    assert verdict.tokens_per_round == pytest.approx(expected, rel=1e-3)
    assert "does not say order of embedding and state: state first was taken" in verdict.findings[0]


@pytest.mark.parametrize("layout", ["speculators", "original"])
def test_p_eagle_in_both_layouts(layout: str, tmp_path: Path) -> None:
    target = Obliging()
    settings = {"heads": 2, "head_dim": 8, "own_layers": 2, "mask_token": 9, "norm_before_residual": True}
    model, expected = drafter("p-eagle", target, depth=3, **settings)
    state = dict(model.net.state_dict())
    if layout == "speculators":
        own = {"speculators_config": {"proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}]}}
        own |= {"speculators_model_type": "peagle", "mask_token_id": 9, "transformer_layer_config": llama(model)}
        config = own | {"eagle_aux_hidden_state_layer_ids": [2, 4, 5], "draft_vocab_size": VOCAB}
        state |= {"verifier_lm_head.weight": state["lm_head.weight"], "verifier_norm.weight": torch.ones(HIDDEN)}
    else:
        config = llama(model, architectures=["PeagleLlamaForCausalLM"], pard_token=9, norm_before_residual=True)
        state = names(state, "layers.1.input_layernorm", "layers.1.hidden_norm")  # as SGLang has it
    verdict = check_drafter(LanguageModel(target), lay(tmp_path / "d", config, state))
    assert verdict.kind == "p-eagle" and verdict.chosen["norm_before_residual"] is True
    # Masks see each other: with more places than it drafted with, the first are what they were.
    assert verdict.tokens_per_round == pytest.approx(expected, rel=1e-3)


def test_a_part_of_the_vocabulary_in_any_order(tmp_path: Path) -> None:
    target = Obliging()
    ids = torch.arange(1, VOCAB, 2)
    config = new_head("eagle3", target, depth=5, heads=2, head_dim=8).net.config
    net = load_kind("eagle3")(replace(config, draft_vocab=len(ids)))
    model = scattered(HeadModel(net, target, ids))
    expected = teach(target, model)
    mixed = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    state = dict(model.net.state_dict())
    flags = torch.zeros(VOCAB, dtype=torch.bool)
    flags[ids] = True
    offsets = ids[mixed] - torch.arange(len(ids))
    state |= {"lm_head.weight": state["lm_head.weight"][mixed], "d2t": offsets, "t2d": flags}
    told = llama(model, norm_before_residual=False, draft_vocab_size=len(ids))
    verdict = check_drafter(LanguageModel(target), lay(tmp_path / "d", told, state))
    assert verdict.tokens_per_round == pytest.approx(expected, rel=1e-3)
    beyond = state | {"d2t": offsets + VOCAB}
    with pytest.raises(ModelError, match=r"drafts token \d+, but the target has 48 tokens"):
        check_drafter(LanguageModel(target), lay(tmp_path / "e", told, beyond))


BODY = {"heads": 2, "head_dim": 8, "adds_state": False, "has_last": False, "taps": (2, 4, 5), "mask_id": 11}
# Kind: settings, architecture, and what its file says beside the body.
DFLASH: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "DFlash (z-lab)": ("dflash", {"anchor_drafts": False}, "DFlashDraftModel", {"block_size": 4}),
    "DFlash, anchor unsaid": ("dflash", {"anchor_drafts": True}, "DFlashDraftModel", {"block_size": 3}),
    "JetSpec": (
        "dflash",
        {"is_causal": True, "anchor_drafts": True},
        "DFlashDraftModel",
        {"block_size": 3, "is_causal": True, "draft_shift": True},
    ),
    "DSpark (DeepSpec)": ("dspark", {"rank": 8, "has_table": True}, "Qwen3DSparkModel", {"block_size": 3}),
    "Domino (z-lab)": (
        "domino",
        {"rank": 8, "gru_size": 8, "pure": 1},
        "DominoDraftModel",
        {"block_size": 3, "shift_label": True, "pure_draft_prefix_len": 1},
    ),
    "DFlash2 (z-lab)": (
        "dflash2",
        {"rank": 8, "has_table": True, "conv_group": 4, "anchor_drafts": False},
        "DFlash2DraftModel",
        {"block_size": 4, "selector_top_k": 16, "conv_kernel_size": 2, "conv_group_size": 4},
    ),
}


CODEBOOK = "candidate_selector.predecessor_codebook"


def z_lab(model: HeadModel, architecture: str, said: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A drafter as z-lab lays it: layers are numbered by what they leave."""
    state = names(model.net.state_dict(), f"{CODEBOOK}.weight", CODEBOOK)
    table = {"mask_token_id": 11, "target_layer_ids": [1, 3, 4]}
    table |= {key: value for key, value in said.items() if key != "block_size" and key != "is_causal"}
    top = {key: value for key, value in said.items() if key in ("block_size", "is_causal")}
    return llama(model, architectures=[architecture], dflash_config=table, num_target_layers=LAYERS, **top), state


@pytest.mark.parametrize("layout", DFLASH)
def test_the_dflash_line_as_its_authors_lay_it(layout: str, tmp_path: Path) -> None:
    kind, settings, architecture, said = DFLASH[layout]
    target = Obliging()
    model, expected = drafter(kind, target, depth=3, **BODY, **settings)
    verdict = check_drafter(LanguageModel(target), lay(tmp_path / "d", *z_lab(model, architecture, said)))
    assert verdict.kind == kind and verdict.layout in (layout, "DFlash (z-lab)")
    assert verdict.tokens_per_round == pytest.approx(expected, rel=1e-3) and expected > 3.5
    assert verdict.chosen["anchor drafts"] is settings.get("anchor_drafts", True)


def test_dflash_whose_layers_are_numbered_otherwise(tmp_path: Path) -> None:
    target = Obliging()
    model, expected = drafter("dflash", target, depth=3, **BODY, anchor_drafts=False)
    config, state = z_lab(model, "DFlashDraftModel", {"block_size": 4, "target_layer_ids": [2, 4, 5]})
    verdict = check_drafter(LanguageModel(target), lay(tmp_path / "d", config, state))
    assert verdict.chosen["layer numbers"] == "entering" and verdict.tokens_per_round == pytest.approx(
        expected, rel=1e-3
    )
    assert "says layer numbers leaving: entering was taken" in " ".join(verdict.findings)


def test_a_mask_with_a_vector_of_its_own(tmp_path: Path) -> None:
    target = Obliging()
    model = scattered(new_head("dflash", target, depth=3, **{**BODY, "mask_id": -1}, anchor_drafts=False))
    with torch.no_grad():
        model.net.mask_embedding.copy_(model.net.mask_embedding[:1].expand(3, -1).clone())  # type: ignore[union-attr, operator]
    expected = teach(target, model)
    config, state = z_lab(model, "DFlashDraftModel", {"block_size": 4})
    vector = state.pop("mask_embedding")[0]
    path = lay(tmp_path / "d", config, state)
    torch.save({"mask_token_id": 11, "embedding": vector}, path / "mask_embedding.pt")
    verdict = check_drafter(LanguageModel(target), path)
    assert verdict.tokens_per_round == pytest.approx(expected, rel=1e-3)


def test_hydra_reads_its_pickled_file(tmp_path: Path) -> None:
    target = Obliging()
    model, expected = drafter("hydra", target, depth=3, blocks=2, own_output=True)
    config = {"hydra_num_heads": 3, "hydra_num_layers": 2, "hydra_head_arch": "mlp", "grounded_heads": True}
    path = lay(tmp_path / "d", config, model.net.state_dict(), file="hydra_lm_head.pt")
    verdict = check_drafter(LanguageModel(target), path)
    assert verdict.kind == "hydra" and verdict.tokens_per_round == pytest.approx(expected, rel=1e-3)


MTP = {"enorm": "token_layernorm", "hnorm": "hidden_layernorm", "eh_proj": "input_proj", "post_norm": "final_layernorm"}


@pytest.mark.parametrize("is_state_first", [False, True])
def test_a_module_that_speculators_cut_out(is_state_first: bool, tmp_path: Path) -> None:
    target = Obliging()
    settings = {"heads": 2, "head_dim": 8, "hidden_first": is_state_first}
    model, expected = drafter("fastmtp", target, depth=3, **settings)
    state = names(model.net.state_dict(), "layers.0.", "mtp_layers.0.")
    for ours, theirs in MTP.items():
        state = names(state, f"mtp_layers.0.{ours}", f"mtp_layers.0.{theirs}")
    state = names(state, "mtp_layers.0.mtp_block.", "mtp_layers.0.")
    layer = llama_of(model) | {"num_hidden_layers": LAYERS}
    config = {"speculators_model_type": "mtp", "transformer_layer_config": layer}
    verdict = check_drafter(LanguageModel(target), lay(tmp_path / "d", config, state))
    assert verdict.kind == "fastmtp" and verdict.tokens_per_round == pytest.approx(expected, rel=1e-3)
    assert verdict.chosen["order of embedding and state"] == ("state first" if is_state_first else "embedding first")


def llama_of(model: HeadModel) -> dict[str, Any]:
    """What a config.json says of the layers of a module."""
    shape = model.net.shape  # type: ignore[union-attr]
    return {
        "model_type": "qwen3",
        "hidden_size": HIDDEN,
        "intermediate_size": shape.ffn,  # type: ignore[union-attr]
        "num_attention_heads": shape.heads,  # type: ignore[union-attr]
        "num_key_value_heads": shape.kv_heads,  # type: ignore[union-attr]
        "head_dim": shape.head_dim,  # type: ignore[union-attr]
        "vocab_size": VOCAB,
        "rms_norm_eps": shape.eps,  # type: ignore[union-attr]
    }


GGUF_LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm", "hidden_norm": "attn_norm_2", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_gguf_drafter(
    path: Path, kind: str, model: HeadModel, state: Mapping[str, Tensor], said: dict[str, Any]
) -> None:
    """A drafter as llama.cpp's converter writes it, by the `gguf` package."""
    gguf = pytest.importorskip("gguf")
    shape, writer = llama(model), gguf.GGUFWriter(path, kind)
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_key_length(shape["head_dim"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_rope_freq_base(shape["rope_theta"])
    for key, value in said.items():
        name = key if "." in key else f"{kind}.{key}"
        adds = {bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
        adds[type(value)](name, value)
    outer = {"lm_head": "output", "norm": "output_norm", "embed_tokens": "token_embd"}
    outer |= {"input_norm" if kind == "eagle3" else "hidden_norm": "enc.output_norm"}
    for name, tensor in state.items():
        stem, _, last = name.rpartition(".")
        layer, _, part = stem.removeprefix("layers.").partition(".")
        written = f"blk.{layer}.{GGUF_LAYER[part]}.{last}" if part in GGUF_LAYER else f"{outer.get(stem, stem)}.{last}"
        rows = tensor.float()
        if kind == "eagle3" and part in ("self_attn.q_proj", "self_attn.k_proj"):
            rows = rows.view(-1, 2, shape["head_dim"] // 2, rows.shape[-1]).transpose(1, 2).reshape(rows.shape)
        writer.add_tensor("d2t" if name == "d2t" else written, tensor.numpy() if name == "d2t" else rows.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_an_eagle3_file_of_llama_cpp(tmp_path: Path) -> None:
    target = Obliging()
    ids = torch.arange(1, VOCAB, 2)
    config = new_head("eagle3", target, depth=5, heads=2, head_dim=8, norm_before_residual=True).net.config
    model = scattered(HeadModel(load_kind("eagle3")(replace(config, draft_vocab=len(ids))), target, ids))
    expected = teach(target, model)
    said = {"target_layers": [2, 4, 5], "target_hidden_size": HIDDEN, "norm_before_residual": True}
    write_gguf_drafter(tmp_path / "d.gguf", "eagle3", model, dict(model.net.state_dict()) | {"d2t": ids}, said)
    verdict = check_drafter(LanguageModel(target), tmp_path / "d.gguf")
    assert verdict.layout == "EAGLE-3 (GGUF)" and verdict.tokens_per_round == pytest.approx(expected, rel=1e-3)


def test_a_dflash_file_of_llama_cpp(tmp_path: Path) -> None:
    target = Obliging()
    model, expected = drafter("dflash", target, depth=3, **BODY, anchor_drafts=False)
    said = {"target_layers": [2, 4, 5], "block_size": 4, "tokenizer.ggml.mask_token_id": 11}
    write_gguf_drafter(tmp_path / "d.gguf", "dflash", model, model.net.state_dict(), said)
    verdict = check_drafter(LanguageModel(target), tmp_path / "d.gguf")
    assert verdict.layout == "DFlash (GGUF)" and verdict.tokens_per_round == pytest.approx(expected, rel=1e-3)


EXPORTS: dict[str, tuple[str, dict[str, Any]]] = {
    "eagle": ("eagle", {"depth": 5, "heads": 2, "head_dim": 8}),
    "eagle3-speculators": ("eagle3", {"depth": 3, "heads": 2, "head_dim": 8, "fc_norm": True, "norm_output": True}),
    "sglang": ("eagle3", {"depth": 5, "heads": 2, "head_dim": 8, "norm_before_residual": True}),
    "dflash": ("dflash", {"depth": 3, **BODY, "anchor_drafts": False}),
    "dflash-speculators": ("dspark", {"depth": 3, **BODY, "rank": 8, "has_table": True}),
    "dspark": ("dspark", {"depth": 3, **BODY, "rank": 8}),
    "medusa": ("medusa", {"depth": 3, "own_output": True}),
    "medusa-vllm": ("medusa", {"depth": 3, "own_output": True}),
}


@pytest.mark.parametrize("form", EXPORTS)
def test_exports_are_read_back_as_they_were(form: str, tmp_path: Path) -> None:
    kind, settings = EXPORTS[form]
    target = Obliging()
    model, expected = drafter(kind, target, **settings)
    save_head(model.net, tmp_path / "ours", dtype=torch.float32)
    before, after = export_drafter(LanguageModel(target), tmp_path / "ours", tmp_path / "theirs", form)
    assert before == after == pytest.approx(expected)
    verdict = check_drafter(LanguageModel(target), tmp_path / "theirs")
    assert verdict.findings == [] and verdict.kind == kind  # nothing is left unsaid


def test_an_export_refuses_what_its_form_has_no_place_for(tmp_path: Path) -> None:
    target = Obliging()
    for kind, form, settings, reason in (
        ("dflash", "dflash", {}, "adds_state"),
        ("dflash", "dflash", {**BODY, "anchor_drafts": True}, "anchor_drafts"),
        ("medusa", "medusa", {}, "more than a product with a matrix"),
        ("medusa", "sglang", {}, "Forms of it: medusa"),
        ("medusa", "medussa", {}, "Did you mean"),
    ):
        model = new_head(kind, target, depth=3, **settings)
        save_head(model.net, tmp_path / f"{form}{reason}")
        with pytest.raises(OutpaceError) as refusal:
            export_drafter(LanguageModel(target), tmp_path / f"{form}{reason}", tmp_path / "out", form)
        assert reason in str(refusal.value) + refusal.value.hint and not (tmp_path / "out").exists()


class Runs:
    """What a pickled file may do to whoever opens it."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def refusal(target: Obliging, path: Path) -> str:
    """The sentence and the hint with which a drafter is refused."""
    with pytest.raises(OutpaceError) as refused:
        check_drafter(LanguageModel(target), path)
    return f"{refused.value} {refused.value.hint}"


def test_a_pickled_file_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.json").write_text(json.dumps(MEDUSA))
    torch.save({"0.0.linear.weight": Runs()}, tmp_path / "d" / "medusa_lm_head.pt")
    assert "could run code" in refusal(Obliging(), tmp_path / "d")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "d" / "medusa_lm_head.pt").write_bytes(b"no file of torch's")
    assert "medusa_lm_head.pt" in refusal(Obliging(), tmp_path / "d")


EAGLE3_FILE = {"norm_before_residual": False, "architectures": ["LlamaForCausalLMEagle3"]}
# What is wrong with a file, and what its refusal says: keys of config.json, and tensors that are changed.
BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another hidden size": ({"target_hidden_size": 99}, {}, "is for a target of states of 99 numbers"),
    "another vocabulary": ({"vocab_size": 99}, {}, "is for a target of 99 tokens"),
    "a layer beyond": ({"eagle_aux_hidden_state_layer_ids": [1, 2, 99]}, {}, "what enters layer 99"),
    "too few layers": ({"eagle_aux_hidden_state_layer_ids": [1, 2]}, {}, "names 2 layers, but its fc reads 3"),
    "a layer that is no number": ({"eagle_aux_hidden_state_layer_ids": "all"}, {}, "names no layers to read: 'all'"),
    "heads of another file": ({"num_attention_heads": 7}, {}, "says 7 heads of 8"),
    "no count of heads": ({"num_attention_heads": None}, {}, "num_attention_heads None"),
    "a tensor too many": ({}, {"exit.weight": (3, 3)}, "has no place for the tensor exit.weight"),
    "a tensor too few": ({}, {"norm.weight": None}, "lacks the tensor norm.weight"),
    "no fusion": ({}, {"fc.weight": None}, "lacks the tensor fc.weight"),
    "a fusion of another target": ({}, {"fc.weight": (16, 50)}, "no multiple of the target's 16"),
    "a matrix of another size": ({}, {"layers.0.mlp.up_proj.weight": (5, 16)}, "has the shape [5, 16] for"),
    "an unknown kind": ({"speculators_model_type": "mlp"}, {}, "of the kind mlp, which is not read here"),
    "a known kind without a reader": ({"architectures": ["Qwen3XPressModel"]}, {}, "of the kind XPress"),
    "drafts that change the text": (
        {"speculators_config": {"proposal_methods": [{"verifier_accept_k": 3}]}},
        {},
        "asks for verifier_accept_k 3, which changes the text",
    ),
    "a tolerance": (
        {"speculators_config": {"proposal_methods": [{"accept_tolerance": 0.1}]}},
        {},
        "asks for accept_tolerance 0.1",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_files_are_refused_in_a_sentence(fault: str, tmp_path: Path) -> None:
    said, changed, reason = BAD[fault]
    target = Obliging()
    model = new_head("eagle3", target, depth=3, heads=2, head_dim=8)
    state: dict[str, Tensor] = dict(model.net.state_dict())
    for name, shape in changed.items():
        state.pop(name, None)
        if shape is not None:
            state[name] = torch.zeros(shape)
    path = lay(tmp_path / "d", {**llama(model), **EAGLE3_FILE, **said}, state)
    assert reason in refusal(target, path)


def test_a_block_has_to_fit_the_context_and_its_mask_the_vocabulary(tmp_path: Path) -> None:
    target = Obliging(context=64)
    model = new_head("dflash", target, depth=3, **BODY, anchor_drafts=False)
    config, state = z_lab(model, "DFlashDraftModel", {"block_size": 65})
    assert "drafts blocks of 65 tokens, but the target's context is 64" in refusal(
        target, lay(tmp_path / "d", config, state)
    )
    config, state = z_lab(model, "DFlashDraftModel", {"block_size": 4, "mask_token_id": VOCAB})
    assert "its mask is token 48; the target has 48 tokens" in refusal(target, lay(tmp_path / "e", config, state))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    target = Obliging()
    model = new_head("eagle3", target, depth=3, heads=2, head_dim=8)
    path = lay(tmp_path / "d", {**llama(model), **EAGLE3_FILE}, model.net.state_dict())
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    assert "bytes where its header promises" in refusal(target, path)
    weights.unlink()
    assert "holds no weights" in refusal(target, path)
    (path / "config.json").write_text("{")
    assert "is not readable JSON" in refusal(target, path)


def test_a_useless_drafter_is_refused_until_somebody_keeps_it(tmp_path: Path) -> None:
    target = Obliging()
    model, _ = drafter("eagle3", target, depth=3, heads=2, head_dim=8)
    strange = scattered(new_head("eagle3", target, depth=3, heads=2, head_dim=8), seed=5)
    config = {**llama(model), **EAGLE3_FILE, "base_model_name_or_path": "org/other"}
    path = lay(tmp_path / "d", config, strange.net.state_dict())
    lm = LanguageModel(target)
    options: dict[str, Any] = {"draft": str(path), "draft_len": 3}
    with pytest.raises(ModelError, match=r"tokens a round; below 1\.2 it only costs") as refused:
        lm.generate([PROMPT], method="eagle3", options=options, max_tokens=8)
    assert "It was trained for org/other, and this target is model." in refused.value.hint
    plain = lm.generate([PROMPT], max_tokens=8)[0].tokens
    assert check_drafter(lm, path, is_kept=True).is_useful
    assert LanguageModel(target).generate([PROMPT], method="eagle3", options=options, max_tokens=8)[0].tokens == plain


def test_a_foreign_drafter_serves_every_method_and_is_tested_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Obliging()
    model, _ = drafter("eagle3", target, depth=5, heads=2, head_dim=8, norm_before_residual=True)
    path = lay(tmp_path / "d", llama(model, draft_vocab_size=VOCAB), model.net.state_dict())
    plain = LanguageModel(target).generate([PROMPT], max_tokens=24)[0].tokens
    for method, options in (("eagle3", {"budget": 6}), ("draft-model", {}), ("opt-tree", {})):
        result = LanguageModel(target).generate(
            [PROMPT], method=method, options={"draft": str(path), **options}, max_tokens=24
        )[0]
        assert result.tokens == plain and result.usage.num_accepted > 6
        assert any("does not say norm_before_residual: True was taken" in note for note in result.notes)
        monkeypatch.setattr(drafter_check, "_judge", None)  # the verdict is kept


def test_a_drafter_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    from outpace import zoo
    from outpace.text.tokenizer import Tokenizer

    target = Obliging()
    model = new_head("medusa", target, depth=2)
    path = lay(tmp_path / "d", MEDUSA, {f"medusa_head.{n}": t for n, t in medusa_state(model).items()})
    table = json.loads((zoo.path("stories") / "tokenizer.json").read_text())
    table["model"]["merges"] = table["model"]["merges"][:50]
    (path / "tokenizer.json").write_text(json.dumps(table))
    lm = LanguageModel(target, Tokenizer.from_directory(zoo.path("stories")))
    with pytest.raises(ModelError, match="another tokenizer"):
        check_drafter(lm, path)
