"""What loading refuses, and how it says so; sharded files, end tokens, capabilities, the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shapes import saved

from outpace.errors import ModelError
from outpace.models import loading
from outpace.models.loading import (
    load_model,
    pick_device,
    pick_dtype,
    read_capabilities,
    read_config,
    read_end_tokens,
    resolve,
)


@pytest.fixture
def copy(model_root: Path, tmp_path: Path) -> Path:
    """A Llama directory that a test may damage."""
    directory, _ = saved("llama", model_root)
    return Path(shutil.copytree(directory, tmp_path / "copy"))


def logits(directory: Path, **options: Any) -> torch.Tensor:
    model = load_model(directory, "float64", **options)
    ids = torch.arange(20)[None]
    return model.score(ids, torch.arange(20)[None], None, model.new_cache(1, 20)).logits


def change(directory: Path, drop: str = "", **more: torch.Tensor) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(drop, None)
    save_file(tensors | more, path)


def refused(directory: Path | str, *words: str) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_model(directory)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value


def test_missing_tensor_is_named_with_its_shape(copy: Path) -> None:
    change(copy, drop="model.layers.1.mlp.down_proj.weight")
    refused(copy, "model.layers.1.mlp.down_proj.weight", "[48, 72]", "missing")


def test_extra_tensor_is_named_with_its_shape(copy: Path) -> None:
    change(copy, **{"model.layers.1.mlp.extra.weight": torch.zeros(2, 5)})
    refused(copy, "model.layers.1.mlp.extra.weight", "[2, 5]")


def test_wrong_shape_names_both(copy: Path) -> None:
    change(copy, **{"model.norm.weight": torch.zeros(47)})
    refused(copy, "model.norm.weight", "[47]", "[48]")


def test_known_buffers_are_ignored(copy: Path) -> None:
    expected = logits(copy)
    change(copy, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(5)})
    assert torch.equal(logits(copy), expected)


@pytest.mark.parametrize("size", [0, 5, 8, 200, -100, -1])
def test_truncated_file(copy: Path, size: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(copy, "model.safetensors")


def test_trailing_bytes(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    refused(copy, "bytes")


@pytest.mark.parametrize("header", [b"{", b"[]", b'{"a": 3}', b'{"a": {"dtype": "F32", "shape": [2]}}', b"\xff\xfe"])
def test_damaged_header(copy: Path, header: bytes) -> None:
    (copy / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    refused(copy, "model.safetensors", "damaged")


@pytest.mark.parametrize("offsets", [[0, 12], [4, 12], [-8, 0], [0, 10**12], [8, 0]])
def test_offsets_that_lie(copy: Path, offsets: list[int]) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}).encode()
    (copy / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    refused(copy, "model.safetensors")


def test_random_bytes(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    refused(copy, "model.safetensors")


def test_directory_without_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    refused(copy, "no weights")


def test_pickle_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"model.norm.weight": torch.ones(48)}, copy / "pytorch_model.bin")
    assert "safetensors" in refused(copy, "pickle").hint


def test_no_config(tmp_path: Path) -> None:
    refused(tmp_path, "config.json")


def test_broken_config(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    refused(copy, "config.json")


def test_config_without_a_needed_key(copy: Path) -> None:
    config = read_config(copy)
    del config["hidden_size"]
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy, "hidden_size")


def test_config_with_numbers_that_cannot_be(copy: Path) -> None:
    config = read_config(copy) | {"num_key_value_heads": 4}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="share"):
        load_model(copy)


def test_unknown_architecture_points_to_the_other_adapter(copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}))
    assert "transformers" in refused(copy, "mamba").hint


def test_sharded_files(model_root: Path, copy: Path) -> None:
    expected = logits(copy)
    shard(copy)
    assert len(list(copy.glob("model-*.safetensors"))) > 1
    assert torch.equal(logits(copy), expected)
    next(iter(sorted(copy.glob("model-*.safetensors")))).unlink()
    refused(copy, "model-00001", "lacks")


def shard(directory: Path) -> None:
    """Split model.safetensors as transformers does."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    index = {}
    for number, start in enumerate(range(0, len(tensors), 9), 1):
        names = list(tensors)[start : start + 9]
        file = f"model-{number:05}-of-00099.safetensors"
        save_file({name: tensors[name] for name in names}, directory / file)
        index |= dict.fromkeys(names, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def test_index_that_leaves_its_directory(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    refused(copy, "index")


def test_head_of_a_tied_model_may_be_in_the_file(model_root: Path, tmp_path: Path) -> None:
    directory, _ = saved("llama-biased-tied", model_root)
    copy = Path(shutil.copytree(directory, tmp_path / "tied"))
    expected = logits(copy)
    embed = load_file(copy / "model.safetensors")["model.embed_tokens.weight"]
    change(copy, **{"lm_head.weight": embed})
    model = load_model(copy, "float64")
    assert model.weights.head.weight is model.weights.embed
    assert torch.equal(logits(copy), expected)
    change(copy, **{"lm_head.weight": embed * 2})
    assert torch.allclose(logits(copy), expected * 2)


def test_capabilities_need_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    found = read_capabilities(copy)
    assert (found.vocab_size, found.max_positions, found.num_layers, found.attention) == (131, 96, 3, "causal")
    assert found.has_skip and found.has_tree and found.mask_id is None


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({"eos_token_id": 3}, {"eos_token_id": 9}, (3,)),
        ({"eos_token_id": [3, 5]}, {}, (3, 5)),
        ({}, {"eos_token_id": 9}, (9,)),
        (None, {"eos_token_id": [7]}, (7,)),
        (None, {"text_config": {"eos_token_id": 4}}, (4,)),
        (None, {}, ()),
    ],
)
def test_end_tokens(tmp_path: Path, generation: Any, config: Any, expected: tuple[int, ...]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read_end_tokens(tmp_path) == expected


def test_masked_llama(copy: Path) -> None:
    """Full attention: the last token changes what is said of the first."""
    config = read_config(copy) | {"model_type": "outpace_masked_llama", "mask_token_id": 130, "attention": "full"}
    (copy / "config.json").write_text(json.dumps(config | {"logits_shift": False}))
    found = read_capabilities(copy)
    assert (found.attention, found.mask_id) == ("full", 130)
    model = load_model(copy, "float64")
    ids, position = torch.arange(12)[None], torch.arange(12)[None]
    first = model.score(ids, position, None, model.new_cache(1, 12)).logits
    last = model.score(ids.clone().index_fill_(1, torch.tensor([11]), 99), position, None, model.new_cache(1, 12))
    assert float((first - last.logits)[0, 0].abs().max()) > 1e-6
    padded = torch.cat([ids, torch.tensor([[5, 6]])], 1)
    hidden = torch.cat([position, torch.tensor([[-1, -1]])], 1)
    again = model.score(padded, hidden, None, model.new_cache(1, 20)).logits[:, :12]
    assert torch.allclose(again, first, rtol=1e-12, atol=1e-12)


def test_unknown_name_and_unreachable_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refused("no-such-model", "no-such-model")
    refused(str(tmp_path / "nothing"), "nothing")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "network" in refused("some-org/some-model", "some-org/some-model", "hub").hint


def test_zoo_names_resolve(monkeypatch: pytest.MonkeyPatch, copy: Path) -> None:
    monkeypatch.setattr(loading, "ZOO", copy.parent)
    assert resolve("copy") == copy
    with pytest.raises(ModelError) as caught:
        resolve("cpoy")
    assert "copy" in caught.value.hint


def test_dtype_and_device_names() -> None:
    cpu = torch.device("cpu")
    assert pick_dtype("auto", {"torch_dtype": "float16"}, cpu) == torch.bfloat16
    assert pick_dtype("auto", {"dtype": "bfloat16"}, cpu) == torch.bfloat16
    assert pick_dtype("auto", {}, cpu) == torch.float32
    assert pick_dtype("float64", {}, cpu) == torch.float64
    assert pick_device("cpu") == cpu
    with pytest.raises(ModelError, match="int3"):
        pick_dtype("int3", {}, cpu)
    with pytest.raises(ModelError, match="nowhere"):
        pick_device("nowhere")


def test_half_precision_files_load_in_any_dtype(copy: Path) -> None:
    path = copy / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    assert logits(copy).dtype == torch.float64
    assert load_model(copy, "bfloat16").weights.embed.dtype == torch.bfloat16
