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
