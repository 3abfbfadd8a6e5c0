"""Nemotron-Labs-Diffusion's layout, read causally: transformers' Ministral 3 under its names; the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from outpace.errors import ModelError
from outpace.models.loading import load_model

transformers = pytest.importorskip("transformers")
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def stored(where: Path, **changes: Any) -> Any:
    """Write a small random checkpoint in the layout, and return the same weights as transformers runs them."""
    torch.manual_seed(0)
    config = transformers.Ministral3Config(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        rope_parameters=ROPE,
    )
    model = transformers.Ministral3ForCausalLM(config).double().eval()
    names = {"model": "encoder", "lm_head": "diffusion_head"}
    held = {}
    for name, weight in model.state_dict().items():
        first, _, rest = name.partition(".")
        held[f"{names[first]}.{rest}"] = weight
    save_file(held, where / "model.safetensors")
    said = {"model_type": "nemotron_labs_diffusion", "architectures": ["NemotronLabsDiffusionModel"]}
    said |= {"mask_token_id": 50, "block_size": 8, "dlm_paradigm": "bidirectional"}
    (where / "config.json").write_text(json.dumps(config.to_dict() | said | changes))
    return model


def test_read_causally_it_is_ministral(tmp_path: Path) -> None:
    theirs = stored(tmp_path)
    model = load_model(tmp_path, dtype="float64")
    offered = model.capabilities
    assert (offered.attention, offered.mask_id, offered.max_positions) == ("causal", None, 16)
    ids = torch.randint(0, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    ours = model.score(ids, torch.arange(12).expand(2, -1), None, model.new_cache(2, 16)).logits
    with torch.no_grad():
        torch.testing.assert_close(ours, theirs(ids).logits, rtol=0, atol=1e-6)


def test_its_blocks_long_texts_and_windows_are_refused(tmp_path: Path) -> None:
    stored(tmp_path)
    with pytest.raises(ModelError, match="with block attention attends in a way that nobody computes here"):
        load_model(tmp_path, card={"attention": "block", "mask_id": 50, "block_length": 8})
    with pytest.raises(ModelError, match="scales queries from position 16 on"):
        load_model(tmp_path, context=64)
    stored(tmp_path, sliding_window=4)
    with pytest.raises(ModelError, match="sliding_window 4"):
        load_model(tmp_path)
