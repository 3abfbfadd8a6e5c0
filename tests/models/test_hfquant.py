"""Quantised checkpoints (GPTQ, AWQ, compressed-tensors, float8): the model of the decoded weights, or one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_layouts import BLOCK, MODULES, Made, Source, awq, float8, gptq, int8, packed, write
from safetensors.torch import load_file, save_file
from torch import Tensor

from outpace.errors import ModelError
from outpace.models.loading import load_model, open_tensors, read_config
from outpace.models.opening import locate

Make = Callable[[str, int, int], Made | None]


def of(write_one: Callable[..., Made], **source: Any) -> Make:
    """Write every module alike, from one stream of random codes."""
    codes = Source(**source)
    return lambda module, rows, columns: write_one(codes, rows, columns)


def floats(block: tuple[int, int], **more: Any) -> Make:
    return lambda module, rows, columns: float8(rows, columns, block, **more)


def compressed(form: str, bits: int, strategy: str, **weights: Any) -> dict[str, Any]:
    args = {"num_bits": bits, "strategy": strategy, "type": "int", "symmetric": True, **weights}
    group = {"targets": ["Linear"], "weights": args}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def gptq_settings(**keys: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, **keys}


def mixed(module: str, rows: int, columns: int) -> Made | None:
    """Four bits in the attention, eight in the network but for one matrix that stays plain."""
    if module.endswith("down_proj"):
        return None
    bits, group = (4, 32) if "self_attn" in module else (8, 16)
    return gptq(Source(bits=bits, group=group), rows, columns)


def two_formats(module: str, rows: int, columns: int) -> Made | None:
    if module.endswith("q_proj"):
        return None
    return float8(rows, columns, (0, 0)) if "mlp" in module else packed(Source(group=0), rows, columns)


TWO_FORMATS = {
    "format": "mixed-precision",
    "quant_method": "compressed-tensors",
    "config_groups": {
        "a": {"targets": ["re:.*mlp.*"], "format": "float-quantized", "weights": {"num_bits": 8, "type": "float"}},
        "b": {"targets": ["Linear"], "format": "pack-quantized", "weights": {"num_bits": 4, "group_size": -1}},
    },
    "ignore": ["re:.*q_proj$", "lm_head"],
}
KEPT, DENSE = "", "dense"
# The settings, the writer, and why codes cannot be kept.
CASES: dict[str, tuple[Any, Make, str]] = {
    "gptq": (gptq_settings(), of(gptq), KEPT),
    "gptq-no-index": (gptq_settings(), of(partial(gptq, has_index=False)), KEPT),
    "gptq-v2": (gptq_settings(checkpoint_format="gptq_v2"), of(partial(gptq, less=0)), KEPT),
    "gptq-8": (gptq_settings(bits=8, group_size=-1), of(gptq, bits=8, group=0), KEPT),
    "gptq-3": (gptq_settings(bits=3), of(gptq, bits=3), KEPT),
    "gptq-2": (gptq_settings(bits=2, group_size=16), of(gptq, bits=2, group=16), KEPT),
    "gptq-act": (gptq_settings(desc_act=True), of(gptq, is_permuted=True), "permuted"),
    "gptq-small-groups": (gptq_settings(group_size=8), of(gptq, group=8), "for 8 inputs"),
    "gptq-mixed": (
        gptq_settings(dynamic={"-:.*down_proj": {}, "+:.*mlp.*": {"bits": 8, "group_size": 16}}), mixed, KEPT
    ),
    "gptq-float32": (gptq_settings(), of(gptq, dtype=torch.float32), "fits no float32"),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, of(awq), KEPT),
    "awq-row": ({"quant_method": "awq", "w_bit": 4, "q_group_size": -1, "version": "GEMM"}, of(awq, group=0), KEPT),
    "float8-block": ({"quant_method": "fp8", "weight_block_size": [40, 48]}, floats((40, 48), name="weight_scale_inv"),
                     DENSE),
    "float8-tensor": ({"quant_method": "fp8"}, floats((0, 0), name="weight_scale_inv"), DENSE),
    "float8-row": ({"quant_method": "fbgemm_fp8"}, floats((1, 0)), DENSE),
    "two-formats": (TWO_FORMATS, two_formats, DENSE),
    "int8-row": (compressed("int-quantized", 8, "channel"), of(int8, bits=8, group=0, is_zeroed=False), KEPT),
    "int8-tensor": (compressed("int-quantized", 8, "tensor"), of(partial(int8, is_one=True), bits=8, group=0), KEPT),
    "int8-group": (
        compressed("naive-quantized", 8, "group", group_size=16, symmetric=False), of(int8, bits=8, group=16), KEPT
    ),
    "int4-in-bytes": (compressed("int-quantized", 4, "group", group_size=32), of(int8), KEPT),
    "float8-ct-block": (
        compressed("float-quantized", 8, "block", type="float", block_structure=[64, 32]), floats((64, 32)), DENSE
    ),
    **{
        f"packed-{bits}": (
            compressed("pack-quantized", bits, "group", group_size=32), of(packed, bits=bits, is_zeroed=False), KEPT
        )
        for bits in (1, 4, 5, 6, 7, 8)
    },
    "packed-zeros": (
        compressed("pack-quantized", 3, "channel", symmetric=False), of(packed, bits=3, group=0, dtype=torch.bfloat16),
        KEPT,
    ),
    "packed-act": (
        compressed("pack-quantized", 4, "group", group_size=32, actorder="group", symmetric=False),
        of(packed, is_permuted=True), "permuted",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantised")


def written(case: str, root: Path) -> Path:
    settings, make, _ = CASES[case]
    return root / case if (root / case).exists() else write(root / case, settings, make)


def logits(directory: Path) -> tuple[Tensor, list[str]]:
    model, ids = load_model(directory, "float32"), torch.arange(12)[None]
    return model.score(ids, ids, None, model.new_cache(1, 12)).logits, model.notes


@pytest.mark.parametrize("case", CASES)
def test_the_model_is_that_of_the_decoded_weights(case: str, root: Path) -> None:
    directory = written(case, root)
    locate(str(directory))
    found, notes = logits(directory)
    expected, _ = logits(directory / "dense")
    assert torch.equal(found, expected)
    assert not any("decoded" in note for note in notes)  # nobody asked for codes


@pytest.mark.parametrize("case", CASES)
def test_codes_are_kept_where_they_say_the_same(case: str, root: Path) -> None:
    directory, reason = written(case, root), CASES[case][2]
    files, dense = open_tensors(directory), load_file(directory / "dense" / "model.safetensors")
    kept = 0
    for module, shape in MODULES.items():
        name = f"{module}.weight"
        codes = files.read_quantised(name, shape)
        kept += codes is not None
        if codes is not None:
            assert torch.equal(codes.dense(), dense[name]), name
            assert int(codes.codes.max()) < 1 << codes.bits
    assert bool(kept) == (reason == KEPT or case == "two-formats")
    assert not reason or reason == DENSE or any(reason in note for note in files.notes)
    assert files.read_quantised("lm_head.weight", (50, 64)) is None
    assert files.num_values() == sum(tensor.numel() for tensor in dense.values())


@pytest.mark.parametrize("scheme", ["dynamic", "static"])
def test_quantised_activations_are_not_followed_and_say_so(scheme: str, tmp_path: Path) -> None:
    settings = {"quant_method": "fp8", "weight_block_size": None, "activation_scheme": scheme}

    def make(module: str, rows: int, columns: int) -> Made:
        made = float8(rows, columns, (0, 0))
        made.tensors["input_scale"] = torch.ones(1)
        return made

    found, notes = logits(write(tmp_path, settings, make))
    assert torch.equal(found, logits(tmp_path / "dense")[0])
    assert any(f"{scheme} quantisation of activations" in note and "not followed" in note for note in notes)
    directory = write(tmp_path / "ct", compressed("int-quantized", 8, "channel") | {"kv_cache_scheme": {"num_bits": 8}},
                      of(int8, bits=8, group=0))  # fmt: skip
    config = read_config(directory)
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"] = {"dynamic": scheme == "dynamic"}
    (directory / "config.json").write_text(json.dumps(config))
    notes = logits(directory)[1]
    assert any(scheme in note for note in notes) and any("cache" in note for note in notes)


def test_an_index_of_zeros_was_never_filled(root: Path, tmp_path: Path) -> None:
    tensors = load_file(written("gptq", root) / "model.safetensors")
    directory = write(tmp_path, gptq_settings(), of(gptq))
    save_file(
        {name: torch.zeros_like(it) if name.endswith("g_idx") else it for name, it in tensors.items()},
        directory / "model.safetensors",
    )
    assert torch.equal(logits(directory)[0], logits(directory / "dense")[0])


def test_old_checkpoints_say_it_in_a_file_of_their_own(root: Path, tmp_path: Path) -> None:
    directory = write(tmp_path, None, of(gptq))
    (directory / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32, "desc_act": False}))
    assert torch.equal(logits(directory)[0], logits(written("gptq", root) / "dense")[0])


def refused(directory: Path) -> str:
    with pytest.raises(ModelError) as caught:
        locate(str(directory))
        load_model(directory, "float32")
    assert caught.value.hint and "\n" not in str(caught.value)
    return str(caught.value)


Q = f"{BLOCK}self_attn.q_proj"
Change = Callable[[dict[str, Tensor]], Mapping[str, Tensor | None]]
DAMAGE: dict[str, tuple[str, Change, str]] = {
    "no scales": ("gptq", lambda t: {f"{Q}.scales": None}, f"{Q}.scales is missing"),
    "no zeros": ("awq", lambda t: {f"{Q}.qzeros": None}, f"{Q}.qzeros is missing"),
    "no scale": ("packed-4", lambda t: {f"{Q}.weight_scale": None}, f"{Q}.weight_scale is missing"),
    "no scale of bytes": ("int8-row", lambda t: {f"{Q}.weight_scale": None}, f"{Q}.weight_scale is missing"),
    "no scale of floats": ("float8-block", lambda t: {f"{Q}.weight_scale_inv": None}, "is missing"),
    "short zeros": ("gptq", lambda t: {f"{Q}.qzeros": t[f"{Q}.qzeros"][:, :-1]}, r"has shape \[2, 7\]; \[2, 8\]"),
    "short words": ("gptq", lambda t: {f"{Q}.qweight": t[f"{Q}.qweight"][:-1]}, r"has shape \[7, 64\]; \[8, 64\]"),
    "too many groups": ("awq", lambda t: {f"{Q}.scales": torch.ones(4, 64).half()}, r"shape \[4, 64\]; \[2, 64\]"),
    "scales of integers": ("gptq", lambda t: {f"{Q}.scales": torch.ones(2, 64).int()}, "stored as I32"),
    "words of floats": ("packed-4", lambda t: {f"{Q}.weight_packed": t[f"{Q}.weight_packed"].float()}, "as F32"),
    "group outside": ("gptq-act", lambda t: {f"{Q}.g_idx": torch.full((64,), 2, dtype=torch.int32)}, "0 to 1"),
    "group below": ("gptq-act", lambda t: {f"{Q}.g_idx": t[f"{Q}.g_idx"] - 1}, "0 to 1"),
    "short index": ("gptq", lambda t: {f"{Q}.g_idx": t[f"{Q}.g_idx"][:-1]}, r"has shape \[63\]"),
    "another shape": ("packed-4", lambda t: {f"{Q}.weight_shape": torch.tensor([64, 63])}, r"has shape \[64, 63\]"),
    "blocks": ("float8-block", lambda t: {f"{Q}.weight_scale_inv": torch.ones(2, 1)}, r"shape \[2, 1\]; \[2, 2\]"),
    "too large": ("int4-in-bytes", lambda t: {f"{Q}.weight": torch.full((64, 64), 9).char()}, "do not fit 4 bits"),
    "wrong layout": ("packed-4", lambda t: {f"{Q}.weight_packed": None, f"{Q}.weight": torch.ones(64, 64).char()},
                     "do not say so"),
    "ignored": ("two-formats", lambda t: {f"{Q}.weight": None, f"{Q}.weight_packed": torch.ones(64, 8).int()},
                "do not say so"),
    "left over": ("gptq", lambda t: {"model.layers.7.qweight": torch.ones(2, 2).int()}, "has no place"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_tensors_are_named(case: str, root: Path, tmp_path: Path) -> None:
    source, change, told = DAMAGE[case]
    source_directory = written(source, root)
    tensors = load_file(source_directory / "model.safetensors")
    changed = {**tensors, **change(tensors)}
    save_file({name: it.contiguous() for name, it in changed.items() if it is not None}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((source_directory / "config.json").read_text())
    assert re.search(told, refused(tmp_path))


SETTINGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "bits 0": ("gptq", {"bits": 0}, "bits 0; it has to be 2 or 3 or 4 or 8"),
    "bits in quotes": ("gptq", {"bits": "4"}, "bits '4'"),
    "other bits": ("gptq", {"bits": 8}, "has shape"),
    "group 0": ("gptq", {"group_size": 0}, "group_size 0"),
    "group that does not divide": ("gptq", {"group_size": 48}, "Groups of 48 do not divide the 64 inputs"),
    "other group": ("awq", {"group_size": 16}, "has shape"),
    "AWQ of eight bits": ("awq", {"bits": 8}, "bits 8"),
    "dynamic": ("gptq", {"dynamic": {"(": {}}}, "regular expression"),
    "dynamic list": ("gptq", {"dynamic": [1]}, "an object of objects"),
    "block": ("float8-block", {"weight_block_size": [0, 48]}, "two numbers above 0"),
    "no groups": ("packed-4", {"config_groups": None}, "config_groups"),
    "no targets": ("packed-4", {"config_groups": {"g": {"targets": "Linear"}}}, "a list of names"),
    "packed floats": (
        "packed-4",
        {"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}}},
        "type float are stored as pack-quantized",
    ),
    "nine bits": ("packed-4", compressed("pack-quantized", 9, "channel"), "1 to 8"),
    "fewer bits": ("packed-4", compressed("pack-quantized", 2, "group", group_size=32), "has shape"),
    "a target's expression": (
        "packed-4", {"config_groups": {"g": {"targets": ["re:["], "weights": {"num_bits": 4}}}}, "regular expression"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_contradict_the_files_or_themselves_are_named(case: str, root: Path, tmp_path: Path) -> None:
    source, keys, told = SETTINGS[case]
    config = read_config(written(source, root))
    config["quantization_config"] |= keys
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(root / source / "model.safetensors")
    assert told in refused(tmp_path)


UNREAD: dict[str, dict[str, Any]] = {
    "stored as marlin": gptq_settings(checkpoint_format="marlin"),
    "stored as gptq_p": gptq_settings(format="gptq_p"),
    "packed as int64": gptq_settings(pack_dtype="int64"),
    "stored as gemv": {"quant_method": "awq", "bits": 4, "version": "gemv"},
    "stored as llm-awq": {"quant_method": "awq", "bits": 4, "backend": "llm-awq"},
    "stored as nvfp4-pack-quantized": compressed("nvfp4-pack-quantized", 4, "tensor_group"),
    "one scale per token": compressed("int-quantized", 8, "token"),
    "sparse-24": compressed("pack-quantized", 4, "channel") | {"sparsity_config": {"format": "sparse-24-bitmask"}},
    "transforms of inputs": compressed("pack-quantized", 4, "channel") | {"transform_config": {"config_groups": {}}},
    "of status frozen": compressed("pack-quantized", 4, "channel") | {"quantization_status": "frozen"},
}


@pytest.mark.parametrize("told", UNREAD)
def test_forms_without_a_reader_are_refused_by_name(told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": UNREAD[told]}))
    assert told in refused(tmp_path)


def test_transposed_families_have_no_reader(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "vocab_size": 50, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": gptq_settings()}))
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    assert "transposed" in refused(tmp_path)
