"""Masked checkpoints in their own layouts against transformers; what is refused; decoding against the oracle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_layouts import BLOCKED, FULL, LAYOUTS, LLADA, MASK, VOCAB, Layout, oracle_logits, written
from safetensors.torch import load_file, save_file
from torch import Tensor

from outpace.api.engine import LanguageModel
from outpace.errors import ModelError
from outpace.models.loading import load_model
from outpace.models.transformer import Transformer

LENGTH = 24


def random_ids(rows: int = 2, length: int = LENGTH) -> Tensor:
    ids = torch.randint(0, VOCAB - 1, (rows, length), generator=torch.Generator().manual_seed(5))
    ids[:, 3::4] = MASK
    return ids


def whole(model: Transformer, ids: Tensor) -> Tensor:
    position = torch.arange(ids.shape[1]).expand(ids.shape[0], -1)
    return model.score(ids, position, None, model.new_cache(*ids.shape)).logits


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.abs().max())


def eager(directory: Path, dtype: str = "float64", **more: Any) -> Transformer:
    return load_model(directory, dtype, **more)


@pytest.mark.parametrize("name", LAYOUTS)
def test_logits_equal_transformers_with_an_explicit_mask(name: str, model_root: Path) -> None:
    directory, oracle = written(name, model_root)
    expected = oracle_logits(name, oracle, random_ids())
    assert distance(whole(eager(directory), random_ids()), expected) <= 1e-9
    assert distance(whole(eager(directory, "float32"), random_ids()), expected) <= 1e-4
    assert distance(whole(load_model(directory, "float32"), random_ids()), expected) <= 1e-4


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_wrong_card_gives_other_logits(name: str, model_root: Path) -> None:
    """The comparison above can tell attention and shift apart."""
    directory, oracle = written(name, model_root)
    expected = oracle_logits(name, oracle, random_ids())
    layout = LAYOUTS[name]
    wrong: list[dict[str, Any]] = [
        {"logits_shift": not layout.is_shifted},
        {"attention": "block", "block_length": 3},
        {"attention": "causal", "mask_id": None},
    ]
    for card in wrong:
        assert distance(whole(eager(directory, card=card), random_ids()), expected) > 1e-3, card


@pytest.mark.parametrize("name", LAYOUTS)
def test_capabilities_follow_the_card(name: str, model_root: Path) -> None:
    directory, _ = written(name, model_root)
    offered, layout = eager(directory).capabilities, LAYOUTS[name]
    assert (offered.attention, offered.block_size) == (("block", layout.block) if layout.block else ("full", 0))
    assert (offered.mask_id, offered.logits_shift, offered.vocab_size) == (MASK, layout.is_shifted, VOCAB)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_tensor_is_used_and_none_may_lack(name: str, model_root: Path, tmp_path: Path) -> None:
    directory, _ = written(name, model_root)
    tensors = load_file(directory / "model.safetensors")
    shutil.copy(directory / "config.json", tmp_path)
    expected = whole(eager(directory), random_ids())
    path = tmp_path / "model.safetensors"
    for key, tensor in tensors.items():
        save_file(tensors | {key: tensor * 0.5 + 0.01}, path)
        changed = eager(tmp_path)
        if not key.endswith("k_proj.bias"):  # it adds the same to all scores of a query, which softmax ignores
            assert distance(whole(changed, random_ids()), expected) > 1e-7, key
        save_file({other: value for other, value in tensors.items() if other != key}, path)
        with pytest.raises(ModelError, match=key.replace(".", r"\.")):
            eager(tmp_path)
    for extra in ("model.layers.0.self_attn.extra.weight", "model.transformer.blocks.0.extra.weight", "extra.weight"):
        save_file(tensors | {extra: torch.zeros(2, 5)}, path)
        with pytest.raises(ModelError, match=r"extra\.weight \[2, 5\] has no place"):
            eager(tmp_path)


def test_a_key_bias_reaches_the_cache(model_root: Path, tmp_path: Path) -> None:
    """Softmax cannot tell a key's bias, the staged keys can."""
    directory, _ = written("dream", model_root)
    tensors = load_file(directory / "model.safetensors")
    shutil.copy(directory / "config.json", tmp_path)
    key = "model.layers.1.self_attn.k_proj.bias"
    save_file(tensors | {key: tensors[key] + 1}, tmp_path / "model.safetensors")
    keys = []
    for folder in (directory, tmp_path):
        model = eager(folder)
        cache = model.new_cache(1, LENGTH)
        model.score(random_ids(1), torch.arange(LENGTH)[None], None, cache)
        keys.append(cache.buffers[2])
    assert not torch.allclose(*keys)


@pytest.mark.parametrize("name", BLOCKED)
def test_cached_blocks_equal_one_forward(name: str, model_root: Path) -> None:
    """Whole blocks are cached, each row at its own length, and the next block equals the uncached forward.

    What is said of a shifted block's first token is said one position before it, so that position stays uncached.
    """
    directory, _ = written(name, model_root)
    model, block, lead = eager(directory), LAYOUTS[name].block, int(LAYOUTS[name].is_shifted)
    ids = random_ids(2, 4 * block)
    expected = whole(model, ids)
    cache = model.new_cache(2, 4 * block + 1)
    position = torch.arange(2 * block).expand(2, -1)
    model.score(ids[:, : 2 * block], position, None, cache)
    ends = [block, 2 * block]
    cache.keep([range(end - lead) for end in ends])
    places = torch.stack([torch.arange(end - lead, end + block) for end in ends])
    ask = torch.arange(lead, lead + block).expand(2, -1)
    logits = model.score(ids.gather(1, places), places, None, cache, ask).logits
    for row, end in enumerate(ends):
        assert distance(logits[row], expected[row, end : end + block]) <= 1e-12


@pytest.mark.parametrize("name", BLOCKED)
def test_later_blocks_are_not_seen(name: str, model_root: Path) -> None:
    directory, _ = written(name, model_root)
    block, ids = LAYOUTS[name].block, random_ids(1)
    other = ids.clone()
    other[:, block:] = (other[:, block:] + 1) % VOCAB
    one, two = whole(eager(directory), ids), whole(eager(directory), other)
    assert torch.equal(one[:, :block], two[:, :block])
    assert not torch.equal(one[:, block + 1 :], two[:, block + 1 :])


def written_by_hand(name: str, oracle: Any, prompt: list[int], count: int) -> list[int]:
    """One token per step, the surest place of the block in work first, every step a whole forward of the oracle."""
    layout = LAYOUTS[name]
    text = torch.tensor([prompt + [MASK] * count])
    size = text.shape[1]
    for start in range(0, size, layout.block) if layout.block else [0]:
        end = min(start + layout.block, size) if layout.block else size
        while bool((is_open := text[0, start:end] == MASK).any()):
            logits = oracle_logits(name, oracle, text)[0, start:end]
            logits[:, MASK] = float("-inf")
            chance, token = logits.softmax(-1).max(-1)
            place = int(chance.masked_fill(~is_open, -1).argmax())
            text[0, start + place] = token[place]
    return text[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", [*FULL, *BLOCKED])
def test_decoding_equals_the_oracle_decoded_by_hand(name: str, model_root: Path) -> None:
    directory, oracle = written(name, model_root)
    lm = LanguageModel(eager(directory))
    prompt = [*random_ids(1)[0, :3].tolist(), 7, 8, 9]
    found = lm.generate(prompt, method="masked-diffusion", max_tokens=12)
    assert found.tokens == written_by_hand(name, oracle, prompt, 12)
    assert len(set(found.tokens)) >= 4


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float64])
def test_a_config_without_a_dtype_follows_the_tensors(stored: torch.dtype, model_root: Path, tmp_path: Path) -> None:
    """LLaDA's config.json names none; taking float32 for it would double an 8B model."""
    directory, _ = written("llada", model_root)
    assert not {"dtype", "torch_dtype"} & json.loads((directory / "config.json").read_text()).keys()
    shutil.copy(directory / "config.json", tmp_path)
    tensors = load_file(directory / "model.safetensors")
    save_file({key: tensor.to(stored) for key, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert eager(tmp_path, "auto").dtype == stored
    assert eager(directory, "auto").dtype == torch.float32


# What is refused


def changed(model_root: Path, tmp_path: Path, name: str, **settings: Any) -> Path:
    """A copy whose config says something else."""
    directory, _ = written(name, model_root)
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text()) | settings
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alibi", True),
        ("rope", False),
        ("attention_layer_norm", True),
        ("block_type", "sequential"),
        ("layer_norm_type", "default"),
        ("activation_type", "swiglu"),
        ("include_bias", True),
        ("scale_logits", True),
        ("input_emb_norm", True),
        ("clip_qkv", 8.0),
    ],
)
def test_other_kinds_of_llada_are_refused_by_name(key: str, value: Any, model_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"LLaDA with {key}") as caught:
        eager(changed(model_root, tmp_path, "llada", **{key: value}))
    assert key in caught.value.hint


@pytest.mark.parametrize("settings", [{"architectures": ["LLaDAMoEModelLM"]}, {"num_experts": 64}])
def test_a_mixture_of_experts_is_told_from_dense_llada(settings: Any, model_root: Path, tmp_path: Path) -> None:
    """Its experts tell it apart: the sizes that it lacks are a mixture's (`test_mixtures.py` reads one)."""
    with pytest.raises(ModelError, match="expert_intermediate_size"):
        eager(changed(model_root, tmp_path, "llada", **settings))


def test_llada_sizes_that_other_keys_imply(model_root: Path, tmp_path: Path) -> None:
    """`mlp_ratio` counts where no size is given, `n_heads` where no key heads are, `vocab_size` where no table size."""
    directory, _ = written("llada", model_root)
    settings = {"mlp_hidden_size": None, "mlp_ratio": 1.5, "n_kv_heads": None, "embedding_size": None}
    copy = changed(model_root, tmp_path, "llada", **settings, vocab_size=VOCAB)
    assert torch.equal(whole(eager(copy), random_ids()), whole(eager(directory), random_ids()))


def test_a_missing_key_is_named(model_root: Path, tmp_path: Path) -> None:
    copy = changed(model_root, tmp_path, "llada")
    config = json.loads((copy / "config.json").read_text())
    config.pop("n_layers")
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="lacks 'n_layers'"):
        eager(copy)


def test_the_layout_of_another_family_is_refused(model_root: Path, tmp_path: Path) -> None:
    """Dream's weights under SDAR's name: the norms that SDAR has are missing."""
    with pytest.raises(ModelError, match="missing"):
        eager(changed(model_root, tmp_path, "dream", model_type="sdar", head_dim=8))


def test_layouts_are_told_apart() -> None:
    assert {layout.config["model_type"] for layout in LAYOUTS.values()} == {
        "llada",
        "Dream",
        "Fast_dLLM_Qwen",
        "sdar",
        "outpace_masked_llama",
    }
    assert isinstance(LAYOUTS["llada"], Layout) and LLADA["model_type"] == "llada"
