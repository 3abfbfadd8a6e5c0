"""What published folders hold besides plain weights: named, obeyed as transformers does, or refused in a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from shapes import saved

from outpace.errors import ModelError
from outpace.models.loading import load_model, read_config, read_end_tokens
from outpace.models.opening import locate, open_model


@pytest.fixture
def copy(model_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved("llama", model_root)[0], tmp_path / "copy"))


def change(directory: Path, **keys: Any) -> None:
    (directory / "config.json").write_text(json.dumps(read_config(directory) | keys))


def refused(name: Path | str) -> str:
    with pytest.raises(ModelError) as caught:
        open_model(str(name))
    assert caught.value.hint and "\n" not in str(caught.value)
    return str(caught.value)


QUANTISED: list[tuple[dict[str, Any], str]] = [
    ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, "GPTQ, 4 bits"),
    ({"quantization_config": {"quant_method": "awq", "w_bit": 4}}, "AWQ, 4 bits"),
    ({"quantization_config": {"load_in_8bit": True, "load_in_4bit": False}}, "bitsandbytes, 8 bits"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes, 4 bits"),
    ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, "FP8, 8 bits"),
    ({"quantization_config": {"quant_method": "mxfp4"}}, "MXFP4, 4 bits"),
    (
        {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8}}},
            }
        },
        "compressed-tensors, 8 bits",
    ),
    ({"compression_config": {"config_groups": {}}}, "compressed-tensors"),
    ({"quantization": {"group_size": 64, "bits": 4}}, "MLX, 4 bits"),
    ({"quantization_config": {"quant_method": "new-thing"}}, "new-thing"),
    ({"quantization_config": "yes"}, "unnamed"),
    ({"text_config": {"quantization_config": {"quant_method": "hqq", "nbits": 3}}}, "HQQ, 3 bits"),
]


@pytest.mark.parametrize(("keys", "called"), QUANTISED, ids=[called for _, called in QUANTISED])
def test_a_quantised_checkpoint_is_named_before_its_weights_are_looked_at(
    keys: dict[str, Any], called: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"} | keys))
    assert called in refused(tmp_path)
    assert locate(f"hf:{tmp_path}") == (tmp_path, False)  # transformers may be asked


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_old_quantised_checkpoints_say_it_in_a_file_of_their_own(file: str, copy: Path) -> None:
    (copy / file).write_text('{"bits": 4}')
    assert "4 bits" in refused(copy)


@pytest.mark.parametrize("none", [None, {}])
def test_no_quantisation_is_none(none: Any, copy: Path) -> None:
    change(copy, quantization_config=none)
    load_model(copy)


def test_an_adapter_is_not_a_model(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    settings = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"})
    (tmp_path / "lora" / "adapter_config.json").write_text(settings)
    save_file({"x.lora_A.weight": torch.ones(1, 2)}, tmp_path / "lora" / "adapter_model.safetensors")
    assert "LoRA adapter for org/base" in refused(tmp_path / "lora")
    (copy / "adapter_config.json").write_text(settings)
    assert "not applied" in load_model(copy).notes[-1]


def test_gguf_and_other_files_say_what_they_are(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    file = tmp_path / "gguf" / "model-q4_0.gguf"
    file.write_bytes(b"GGUF")
    assert "too short to be a GGUF file" in refused(file) and "GGUF" in refused(file.parent)
    (file.parent / "config.json").write_text('{"model_type": "llama"}')
    assert "GGUF" in refused(file.parent)
    assert "neither a model directory nor a GGUF file" in refused(copy / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool, torch.float8_e4m3fn])
def test_weights_without_scales_are_refused(dtype: torch.dtype, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    save_file(tensors | {name: tensors[name].to(dtype)}, copy / "model.safetensors")
    assert "scales" in refused(copy) and "scales" in refused(f"hf:{copy}")


def test_float16_on_a_cpu_is_noted(copy: Path) -> None:
    change(copy, dtype="float16")
    model = load_model(copy, device="cpu")
    assert model.dtype == torch.bfloat16 and "float16" in model.notes[-1]
    assert load_model(copy, "bfloat16", "cpu").notes == []


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_tensors_without_elements_may_stand_anywhere_in_a_header(order: tuple[int, ...], copy: Path) -> None:
    path = copy / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    first = min(facts["data_offsets"][0] for name, facts in header.items() if name != "__metadata__")
    last = max(facts["data_offsets"][1] for name, facts in header.items() if name != "__metadata__")
    empty = {f"model.layers.{i}.rotary_emb.inv_freq": first if i else last for i in range(2)}
    extra = [{n: {"dtype": "F32", "shape": [0, 3], "data_offsets": [at, at]} for n, at in part} for part in (
        list(empty.items())[:1], list(empty.items())[1:]
    )]  # fmt: skip
    parts = [extra[0], header, extra[1]]
    made = json.dumps({name: facts for i in order for name, facts in parts[i].items()}).encode()
    path.write_bytes(len(made).to_bytes(8, "little") + made + data[8 + size :])
    load_model(copy)


def test_a_whole_file_counts_before_an_index_beside_it(copy: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    load_model(copy)
    (copy / "model.safetensors").rename(copy / "model-00002-of-00002.safetensors")
    assert "lacks" in refused(copy)


def test_a_tied_head_may_stand_for_the_embedding(model_root: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(saved("llama-biased-tied", model_root)[0], tmp_path / "tied"))
    ids = torch.arange(20)[None]

    def logits() -> torch.Tensor:
        model = load_model(directory, "float64")
        assert model.weights.head.weight is model.weights.embed
        return model.score(ids, ids, None, model.new_cache(1, 20)).logits

    expected, tensors = logits(), load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(), expected)
    theirs = hf.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [("7", (7,)), (["7", 8.0], (7, 8)), ([5, 131, -1, 10**9], (5,)), (None, ()), ([], ())],
)
def test_end_tokens_as_files_spell_them(stated: Any, expected: tuple[int, ...], copy: Path) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    change(copy, eos_token_id=None)
    assert read_end_tokens(copy) == expected


@pytest.mark.parametrize("stated", ["</s>", [[2]], 2.5, True, {"id": 2}])
def test_end_tokens_that_are_none(stated: Any, copy: Path) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": stated}))
    with pytest.raises(ModelError, match="no token id"):
        read_end_tokens(copy)


WRONG: dict[str, list[Any]] = {
    "vocab_size": ["131", 131.5, -1, 0, True, [131]],
    "num_attention_heads": [0, -6, "6", [6], 1.5],
    "num_key_value_heads": ["2", 0, []],
    "num_hidden_layers": ["3", 10**12, {}],
    "hidden_size": [None, "48", [48]],
    "intermediate_size": [[72, 72], "72"],
    "head_dim": [0, "8"],
    "max_position_embeddings": [0, "96", 1e3],
    "rms_norm_eps": ["1e-6", [], -1.0],
    "hidden_act": [None, 3, "unheard"],
    "tie_word_embeddings": ["false", [], 2],
    "rope_scaling": ["linear", [1], {"rope_type": "linear", "factor": "2"}, {"rope_type": "linear"}, {"type": 3}],
    "rope_parameters": [{"rope_theta": "1e4"}, {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}],
    "model_type": [3, None, ["llama"]],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_value_of_the_wrong_kind_is_named(key: str, value: Any, copy: Path) -> None:
    if (key, value) == ("hidden_act", None):
        value = 1.5  # null is a key left out, and this one has a default
    change(copy, **{key: value})
    refused(copy)


def test_null_is_a_key_left_out(copy: Path) -> None:
    change(copy, num_key_value_heads=None, head_dim=None, rope_scaling=None, sliding_window=None, attention_bias=None)

    with pytest.raises(ModelError, match="was expected"):  # six key heads in place of two: the tensors disagree
        load_model(copy)
