"""Inflated models: the same function in both precisions, the size asked for, and nothing of it for free."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from outpace import kernels
from outpace.bench.inflate import _Splitter, count_parameters, inflate, inflated_from, parse_size, streamed_parameters
from outpace.errors import ConfigError, ModelError
from outpace.models.loading import load_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=44,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.copy_(torch.rand_like(tensor) + 0.5 if "norm" in name else torch.randn_like(tensor) * 0.2)
    model.to(torch.bfloat16).save_pretrained(directory)
    (directory / "tokenizer.json").write_text("{}")
    return directory


def logits(directory: Path, dtype: torch.dtype) -> torch.Tensor:
    ids = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(1))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    with torch.no_grad():
        return model(ids).logits.float()


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_function_stays(source: Path, tmp_path: Path, width: int) -> None:
    size = 16 * count_parameters(json.loads((source / "config.json").read_text())) * width
    larger = inflate(source, tmp_path / "larger", size, width=width)
    assert distance(logits(larger, torch.float32), logits(source, torch.float32)) <= 1e-5
    half, whole = logits(source, torch.bfloat16), logits(source, torch.float32)
    # No further from the source in bfloat16 than bfloat16 is from float32.
    assert distance(logits(larger, torch.bfloat16), half) <= max(2e-3, distance(half, whole))


def test_our_loader_writes_the_same_text(source: Path, tmp_path: Path) -> None:
    larger = inflate(source, tmp_path / "larger", 4 * 40_000)
    texts = []
    for directory in (source, larger):
        model = load_model(directory, dtype="float32", kernels=kernels)
        cache = model.new_cache(1, 64)
        tokens = [5, 17, 3]
        logits = model.score(torch.tensor([tokens]), torch.arange(3)[None], None, cache).logits
        cache.keep([range(3)])
        for place in range(3, 40):
            tokens.append(int(logits[0, -1].argmax()))
            logits = model.score(torch.tensor([tokens[-1:]]), torch.tensor([[place]]), None, cache).logits
            cache.keep([[0]])
        texts.append(tokens)
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 3


def test_size_marker_and_files(source: Path, tmp_path: Path) -> None:
    larger = inflate(source, tmp_path / "larger", 400_000)
    config = json.loads((larger / "config.json").read_text())
    marker = inflated_from(larger)
    assert marker == {"from": source.name, "params": count_parameters(config)}
    assert abs(marker["params"] / 400_000 - 1) < 0.2
    assert streamed_parameters(config) == marker["params"]  # tied
    assert (larger / "tokenizer.json").read_text() == "{}"
    assert inflated_from(source) is None
    stored = 0
    for path in larger.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]
        stored += sum(tensor.numel() for tensor in tensors)
        assert all(bool((tensor != 0).float().mean() > 0.9) for tensor in tensors)
    assert stored == marker["params"]


def test_shares_are_exact_and_uneven() -> None:
    weight = torch.randn(50, 30).bfloat16().float()
    split = _Splitter(4, torch.Generator().manual_seed(0)).shares(weight)
    assert torch.equal(split.bfloat16().float(), split)
    parts = split.double().chunk(4, dim=1)
    assert torch.equal(sum(parts), weight.double())
    assert not torch.equal(parts[0], parts[1])


def test_what_cannot_be_inflated(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="width is 3"):
        inflate(source, tmp_path / "a", 400_000, width=3)
    with pytest.raises(ConfigError, match="fewer"):
        inflate(source, tmp_path / "b", 100, width=2)
    with pytest.raises(ModelError):
        inflate(tmp_path, tmp_path / "c", 400_000)


def test_sizes() -> None:
    assert [parse_size(text) for text in ("350M", "1.5b", "1234")] == [350_000_000, 1_500_000_000, 1234]
    with pytest.raises(ConfigError):
        parse_size("large")
