"""Drafter files in everyone's layouts: detected, read, tried out, refused, and written back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from outpace.api import drafter_check
from outpace.api.drafter_check import check_drafter
from outpace.api.engine import LanguageModel
from outpace.errors import ModelError, OutpaceError
from outpace.heads.files import save_head
from outpace.heads.model import HeadModel, new_head
from obliging import HIDDEN, LAYERS, PROMPT, VOCAB, Obliging, scattered, teach


@pytest.fixture(autouse=True)
def one_prompt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(drafter_check, "_prompts", lambda lm: [PROMPT])
    monkeypatch.setattr(drafter_check, "_TOKENS", 16)
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
    assert verdict.kind == "medusa" and expected == 4
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


# What a file may leave unsaid, or say wrongly, and how the drafter was made: settings, keys of the file, and the choice.
EAGLE3: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "all said": ({"norm_before_residual": True}, {"norm_before_residual": True}, {}),
    "norm unsaid, false": ({}, {}, {"norm_before_residual": False}),
    "norm unsaid, true": ({"norm_before_residual": True}, {}, {"norm_before_residual": True}),
    "norm said wrongly": ({"norm_before_residual": True}, {"norm_before_residual": False}, {"norm_before_residual": True}),
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
    "NVIDIA": ({"norm_before_fc": True}, {"eagle_config": {"norm_before_residual": False}}, {}),
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
    model, expected = drafter("eagle3", target, depth=3, heads=2, head_dim=8, **settings)
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
