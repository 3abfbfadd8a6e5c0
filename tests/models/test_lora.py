"""LoRA adapters: the model of the merged weights, or one sentence."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_layouts import BLOCK, CONFIG, Source, gptq, write
from safetensors.torch import load_file, save_file
from torch import Tensor

import outpace
from outpace.errors import ConfigError, ModelError, OutpaceError
from outpace.models.loading import load_model, open_tensors
from outpace.models.lookup import find_family
from outpace.models.lora import AdaptedFiles
from outpace.models.opening import locate, open_model

Tensors = dict[str, Tensor]
Q, DOWN = f"{BLOCK}self_attn.q_proj", f"{BLOCK}mlp.down_proj"
SETTINGS = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "init_lora_weights": True, "use_dora": False}


def pair(module: str, rows: int, columns: int, rank: int = 4, dtype: torch.dtype = torch.float32) -> Tensors:
    """The two factors of one module."""
    random = torch.Generator().manual_seed(rows + rank)
    a, b = (torch.randn(*shape, generator=random).to(dtype) for shape in ((rank, columns), (rows, rank)))
    return {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}


def product(tensors: Tensors, module: str, scale: float) -> Tensor:
    a, b = (tensors[f"base_model.model.{module}.lora_{name}.weight"].float() for name in "AB")
    return (b @ a) * scale


def save(directory: Path, tensors: Tensors, **settings: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def merged(base: Path, directory: Path, change: Callable[[Tensors], None]) -> Path:
    """A copy of a model with other weights."""
    shutil.copytree(base, directory)
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    return directory


def logits(directory: Path, adapter: Path | None = None, dtype: str = "float32") -> Tensor:
    model, ids = load_model(directory, dtype, adapter=adapter), torch.arange(12)[None]
    return model.score(ids, ids, None, model.new_cache(1, 12)).logits


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("base"), None, lambda *_: None) / "dense"


@pytest.mark.parametrize(
    ("settings", "scales", "ranks"),
    [
        ({}, (1.5, 1.5), (4, 4)),
        ({"use_rslora": True}, (3.0, 3.0), (4, 4)),
        ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.0\.mlp.*": 5}}, (3.0, 1.25), (2, 4)),
        ({"rank_pattern": {"proj": 2}, "use_rslora": True}, (3.0, 3.0), (4, 4)),  # no whole name ends so
        ({"rank_pattern": {".*_proj": 9}, "use_rslora": True}, (2.0, 2.0), (9, 9)),
    ],
)
def test_matrices_become_their_sum_with_the_product(
    settings: dict[str, Any], scales: tuple[float, float], ranks: tuple[int, int], base: Path, tmp_path: Path
) -> None:
    tensors = pair(Q, 64, 64, ranks[0]) | pair(DOWN, 64, 96, ranks[1])

    def change(weights: Tensors) -> None:
        for module, scale in zip((Q, DOWN), scales, strict=True):
            weights[f"{module}.weight"] += product(tensors, module, scale)

    adapter = save(tmp_path / "lora", tensors, **settings)
    expected = merged(base, tmp_path / "merged", change)
    assert torch.equal(logits(base, adapter), logits(expected))
    assert not torch.equal(logits(base, adapter), logits(base))


def test_embedding_head_and_whole_tensors(base: Path, tmp_path: Path) -> None:
    norm = torch.rand(64)
    tensors = pair("lm_head", 50, 64, dtype=torch.bfloat16)
    tensors |= {
        "base_model.model.model.embed_tokens.lora_embedding_A": torch.randn(4, 50),
        "base_model.model.model.embed_tokens.lora_embedding_B": torch.randn(64, 4),
        "base_model.model.model.norm.weight": norm,
    }

    def change(weights: Tensors) -> None:
        a, b = (tensors[f"base_model.model.model.embed_tokens.lora_embedding_{name}"] for name in "AB")
        weights["model.embed_tokens.weight"] += ((b @ a) * 1.5).t()
        weights["lm_head.weight"] += product(tensors, "lm_head", 1.5)
        weights["model.norm.weight"] = norm

    expected = merged(base, tmp_path / "merged", change)
    assert torch.equal(logits(base, save(tmp_path / "lora", tensors, modules_to_save=["norm"])), logits(expected))


def test_the_sum_is_rounded_once(base: Path, tmp_path: Path) -> None:
    def halve(weights: Tensors) -> None:
        for name in weights:
            weights[name] = weights[name].bfloat16()

    def change(weights: Tensors) -> None:
        weights[f"{Q}.weight"] = (weights[f"{Q}.weight"].float() + product(tensors, Q, 1.5)).bfloat16()

    tensors = pair(Q, 64, 64, dtype=torch.float16)
    half = merged(base, tmp_path / "half", halve)
    expected = merged(half, tmp_path / "merged", change)
    assert torch.equal(logits(half, save(tmp_path / "lora", tensors), "bfloat16"), logits(expected, dtype="bfloat16"))


def test_matrices_that_lie_transposed(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "vocab_size": 50, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
    random = torch.Generator().manual_seed(2)
    shapes = {"attn.c_attn": (32, 96), "attn.c_proj": (32, 32), "mlp.c_fc": (32, 128), "mlp.c_proj": (128, 32)}
    weights = {"wte.weight": torch.randn(50, 32, generator=random), "wpe.weight": torch.randn(16, 32, generator=random)}
    for norm in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        weights |= {f"{norm}.weight": torch.ones(32), f"{norm}.bias": torch.zeros(32)}
    for name, shape in shapes.items():
        weights[f"h.0.{name}.weight"] = torch.randn(*shape, generator=random) * 0.2
        weights[f"h.0.{name}.bias"] = torch.zeros(shape[1])
    directory = tmp_path / "gpt2"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file(weights, directory / "model.safetensors")
    module = "transformer.h.0.attn.c_attn"  # the files have no "transformer."
    tensors = pair(module, 96, 32)

    def change(weights: Tensors) -> None:
        weights["h.0.attn.c_attn.weight"] += product(tensors, module, 1.5).t()

    adapter = save(tmp_path / "lora", tensors, fan_in_fan_out=True)
    assert torch.equal(logits(directory, adapter), logits(merged(directory, tmp_path / "merged", change)))


def test_a_quantised_matrix_is_decoded_and_the_rest_keeps_its_codes(tmp_path: Path) -> None:
    codes = Source()
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    directory = write(tmp_path / "gptq", settings, lambda module, rows, columns: gptq(codes, rows, columns))
    adapter = save(tmp_path / "lora", pair(Q, 64, 64))
    assert torch.equal(logits(directory, adapter), logits(directory / "dense", adapter))
    files = AdaptedFiles(open_tensors(directory), adapter, find_family(CONFIG), is_tied=False)
    assert files.read_quantised(f"{DOWN}.weight", (64, 96)) is not None and not files.notes
    assert files.read_quantised(f"{Q}.weight", (64, 64)) is None and "adapter" in files.notes[0]
    assert files.quantised_kinds() == ["GPTQ, 4 bits"]


def refused(model: Path, adapter: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(model, "float32", adapter=adapter)
    assert caught.value.hint and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, r"biases \(all\)"),
        ({"peft_type": "IA3"}, "IA3, no LoRA"),
        ({"use_qalora": True}, "use_qalora"),
        ({"lora_bias": True}, "lora_bias"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": 8}, "has rank 4, but its settings say 8"),
        ({"r": "4"}, "say '4'"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"rank_pattern": {"(": 2}}, "regular expression"),
    ],
)
def test_settings_that_mean_more_are_refused_by_name(
    settings: dict[str, Any], told: str, base: Path, tmp_path: Path
) -> None:
    assert re.search(told, refused(base, save(tmp_path, pair(Q, 64, 64), **settings)))


A = f"base_model.model.{Q}.lora_A.weight"
WRONG: dict[str, tuple[Tensors, str]] = {
    "another width": (pair(Q, 64, 48), r"lora_A.weight has shape \[4, 48\]; \[4, 64\]"),
    "another height": (pair(Q, 48, 64), r"lora_B.weight has shape \[48, 4\]; \[64, 4\]"),
    "another layer": (pair("model.layers.7.self_attn.q_proj", 64, 64), "layers.7.*has no place"),
    "one factor": ({A: torch.ones(4, 64)}, "one factor of two"),
    "a vector": (pair(Q, 64, 64) | {A: torch.ones(4)}, "no matrix"),
    "magnitudes": (pair(Q, 64, 64) | {f"base_model.model.{Q}.lora_magnitude_vector.weight": torch.ones(64)}, "DoRA"),
    "experts": ({f"base_model.model.{Q}.lora_C.weight": torch.ones(4, 64)}, "no factor of a LoRA"),
    "no prefix": ({"model.norm.weight": torch.ones(64)}, "no factor of a LoRA"),
    "integers": (pair(Q, 64, 64, dtype=torch.int32), "stored as I32"),
    "another vocabulary": ({"base_model.model.lm_head.weight": torch.ones(51, 64)}, r"shape \[51, 64\]; \[50, 64\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_adapter_of_another_model_is_refused_by_its_tensor(case: str, base: Path, tmp_path: Path) -> None:
    tensors, told = WRONG[case]
    assert re.search(told, refused(base, save(tmp_path, tensors)))


def test_an_embedding_that_is_also_the_head(base: Path, tmp_path: Path) -> None:
    tied = merged(base, tmp_path / "tied", lambda weights: weights.__delitem__("lm_head.weight"))
    (tied / "config.json").write_text(json.dumps(CONFIG | {"tie_word_embeddings": True}))
    for name in ("lm_head", "model.embed_tokens"):
        assert "shares" in refused(tied, save(tmp_path / "lora", pair(name, 50, 64)))


def test_folders_that_hold_no_adapter(base: Path, tmp_path: Path) -> None:
    assert "holds no adapter" in refused(base, tmp_path)
    assert "holds no adapter" in refused(base, tmp_path / "nowhere")
    (save(tmp_path, pair(Q, 64, 64)) / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors" in refused(base, tmp_path)


def test_a_folder_of_an_adapter_stands_for_its_model(base: Path, tmp_path: Path) -> None:
    adapter = save(tmp_path / "lora", pair(Q, 64, 64), base_model_name_or_path=str(base))
    assert locate(str(adapter)) == (base, True)
    model = open_model(str(adapter), "float32", "cpu")
    ids = torch.arange(12)[None]
    assert torch.equal(model.score(ids, ids, None, model.new_cache(1, 12)).logits, logits(base, adapter))
    for name, more in ((str(adapter), str(adapter)), (f"hf:{adapter}", None), (f"hf:{base}", str(adapter))):
        with pytest.raises(ConfigError, match="adapter"):
            open_model(name, "float32", "cpu", adapter=more)


def test_the_python_face_and_the_command_line_take_one(
    tiny: Path, vocab: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = save(tmp_path / "lora", pair("lm_head", vocab, 32))
    arguments = {"dtype": "float32", "is_compiled": False}
    changed = outpace.load(tiny, adapter=adapter, **arguments)
    plain = outpace.load(tiny, **arguments).generate([1, 2], max_tokens=8)
    expected = changed.generate([1, 2], max_tokens=8)
    assert expected.tokens != plain.tokens
    from outpace.cli import main

    text = changed.encode("the fox")
    command = ["generate", "the fox", "--model", str(tiny), "--dtype", "float32", "--no-compile", "--max-tokens", "8"]
    assert main([*command, "--json", "--adapter", str(adapter)]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == changed.generate(text, max_tokens=8).tokens
    assert main(["score", "the fox", "--model", str(tiny), "--adapter", str(tmp_path / "none")]) == 2
    assert "holds no adapter" in capsys.readouterr().err
    with pytest.raises(OutpaceError, match="adapter"):
        outpace.load(tiny, adapter=3)  # type: ignore[arg-type]


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "stabilised": (
        "llama",
        {"target_modules": "all-linear", "use_rslora": True, "rank_pattern": {"v_proj": 3, r"mlp\.up_proj": 5},
         "alpha_pattern": {"layers.1.self_attn.q_proj": 11}},
    ),
    "outer": ("llama", {"target_modules": ["embed_tokens", "k_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "transposed": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of theirs
@pytest.mark.parametrize("case", CASES)
def test_peft_merges_to_the_same_weights(case: str, model_root: Path, tmp_path: Path) -> None:
    peft, hf = pytest.importorskip("peft"), pytest.importorskip("transformers")
    from shapes import saved

    family, settings = CASES[case]
    directory = saved(family, model_root)[0]
    model = hf.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=7, **settings)).eval()
    random = torch.Generator().manual_seed(3)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=random) * 0.3
    wrapped.save_pretrained(tmp_path / "lora")
    ids = torch.arange(12)[None]
    whole = wrapped.merge_and_unload()
    whole.save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        theirs = whole(ids).logits
    found = logits(directory, tmp_path / "lora")
    assert torch.equal(found, logits(tmp_path / "merged"))
    assert math.isclose(float((found - theirs).abs().max()), 0, abs_tol=2e-4)
    assert (found - logits(directory)).abs().max() > 0.1
