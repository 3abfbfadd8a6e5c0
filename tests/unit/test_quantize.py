"""Rounding matrices, and the files that hold them: read back by slow decoders, by other packages, and by the engine."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize, quantize
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, pre_tokenizers
from torch import Tensor

import outpace
from outpace.errors import ConfigError, ModelError, StorageError
from outpace.models.loading import load_model
from outpace.models.rounding import round_matrix
from outpace.quantize import convert as converting
from outpace.quantize.compressed import pack_codes
from outpace.quantize.convert import Plan, Written, check_output, convert, needed_bytes
from outpace.quantize.finequant import choose_group, group_sizes
from outpace.quantize.gguf_file import encode, write_plain
from outpace.quantize.measure import bits_per_byte
from outpace.quantize.source import open_source

TEXT = "the quick brown fox jumps over the lazy dog and then the fox sleeps. " * 12
SHAPE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 24}
FAMILIES = {
    "llama": {"model_type": "llama"},
    "llama3": {"model_type": "llama", "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "linear": {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "tied": {"model_type": "llama", "tie_word_embeddings": True},
    "biased": {"model_type": "llama", "attention_bias": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
}


def weights(config: dict[str, object], dtype: torch.dtype) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(7)
    hidden, ffn, query, key = 64, int(str(config["intermediate_size"])), 64, 32
    has_bias = config["model_type"] == "qwen2" or bool(config.get("attention_bias"))
    shapes = {"model.embed_tokens": (320, hidden), "model.norm": (hidden,)}
    shapes |= {} if config["tie_word_embeddings"] else {"lm_head": (320, hidden)}
    for layer in range(2):
        name = f"model.layers.{layer}"
        rows = {"q": query, "k": key, "v": key}
        shapes |= {f"{name}.self_attn.{part}_proj": (size, hidden) for part, size in rows.items()}
        shapes |= {f"{name}.self_attn.o_proj": (hidden, query), f"{name}.mlp.down_proj": (hidden, ffn)}
        shapes |= {f"{name}.mlp.{part}_proj": (ffn, hidden) for part in ("gate", "up")}
        shapes |= {f"{name}.{part}_layernorm": (hidden,) for part in ("input", "post_attention")}
        if config["model_type"] == "qwen3":
            shapes |= {f"{name}.self_attn.{part}_norm": (16,) for part in "qk"}
    found = {f"{name}.weight": torch.randn(shape, generator=source) / 5 for name, shape in shapes.items()}
    if has_bias:
        biased = [name for name in found if any(f"{part}_proj" in name for part in "qkv")]
        biased += [name for name in found if "o_proj" in name] if config["model_type"] == "llama" else []
        found |= {
            name.replace("weight", "bias"): torch.randn(found[name].shape[0], generator=source) for name in biased
        }
    return {name: tensor.to(dtype) for name, tensor in found.items()}


def write(
    folder: Path, tokenizer: Tokenizer, family: str = "llama", dtype: torch.dtype = torch.bfloat16, **more: object
) -> Path:
    folder.mkdir()
    config = SHAPE | FAMILIES[family] | {"eos_token_id": 0, "torch_dtype": str(dtype)[6:]} | more
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": "{{ 1 }}"}))
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(weights(config, dtype), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    return write(tmp_path_factory.mktemp("quantize") / "model", tokenizer)


def matrix(rows: int = 24, columns: int = 192, seed: int = 3) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def down(path: Path) -> Tensor:
    """The last matrix of a model, as the engine reads it."""
    found = load_model(path, dtype="float32", pack=False).weights.layers[1].down.weight
    assert found is not None
    return found


# Rounding


@pytest.mark.parametrize(("dtype", "slack"), [(torch.float16, 0.07), (torch.bfloat16, 0.0)])
@pytest.mark.parametrize(("bits", "is_shifted"), [(8, False), (4, False), (4, True)])
@pytest.mark.parametrize("group", [16, 32, 96, 192])
def test_codes_are_nearest_under_scales_that_the_file_can_hold(
    bits: int, is_shifted: bool, group: int, dtype: torch.dtype, slack: float
) -> None:
    weight = matrix()
    found = round_matrix(weight, bits, group, dtype, is_shifted=is_shifted)
    assert torch.equal(found.scale, found.scale.to(dtype).float())
    assert found.group == group
    if is_shifted:
        assert torch.equal(found.shift, found.shift.to(dtype).float())
    else:
        assert torch.equal(found.shift, found.scale * -(2 ** (bits - 1)))
    # No other code comes closer, but for what rounding the scale after the codes were chosen may do (in steps).
    levels = torch.arange(2**bits).float()
    places = found.scale[..., None] * levels + found.shift[..., None]
    gaps = (weight.view(*found.scale.shape, group, 1) - places[..., None, :]).abs()
    chosen = gaps.gather(-1, found.codes.view(*found.scale.shape, group, 1).long())[..., 0]
    steps = slack if not is_shifted else 0.02 if dtype == torch.float16 else 0.1
    assert (chosen <= gaps.amin(-1) + 1e-6 + 2 * steps * found.scale.abs()[..., None]).all()


@pytest.mark.parametrize(("kind", "bits", "is_shifted"), [("Q8_0", 8, False), ("Q4_0", 4, False), ("Q4_1", 4, True)])
def test_groups_of_32_are_rounded_as_gguf_does_bit_for_bit(kind: str, bits: int, is_shifted: bool) -> None:
    weight, type_ = matrix(256).bfloat16().float(), GGMLQuantizationType[kind]
    weight[:, 40:48] = torch.tensor([2.5, -2.5, 0.5, -0.5, 7.5, -7.5, 8.0, 0.0]) / 8  # halves between two codes
    theirs = quantize(weight.numpy(), type_)
    assert np.array_equal(encode(round_matrix(weight, bits, 32, is_shifted=is_shifted), kind).numpy(), theirs)


def test_a_long_group_spends_its_codes_on_most_values() -> None:
    weight = matrix(64)
    ours = round_matrix(weight, 4, 192).dense()
    most = weight.abs().amax(1, keepdim=True) / 7
    plain = (weight / most).round().clamp(-8, 7) * most
    errors = [(weight.abs() * (found - weight).square()).sum() for found in (ours, plain)]
    assert errors[0] < 0.8 * errors[1]


def test_zeros_stay_and_what_is_no_number_is_refused() -> None:
    for bits, is_shifted in ((8, False), (4, False), (4, True)):
        assert not round_matrix(torch.zeros(2, 32), bits, 32, is_shifted=is_shifted).dense().any()
        for wrong in (torch.nan, torch.inf):
            weight = matrix(2, 64)
            weight[1, 40] = wrong
            with pytest.raises(ModelError, match="not a number"):
                round_matrix(weight, bits, 32, is_shifted=is_shifted)
        with pytest.raises(ModelError, match="float16"):
            round_matrix(matrix(2, 64) * 1e9, bits, 32, is_shifted=is_shifted)


# FineQuant


def test_groups_shrink_while_that_is_worth_its_scales() -> None:
    assert group_sizes(192) == [192, 96, 64, 32]
    assert group_sizes(256) == [256, 128, 64, 32]
    assert choose_group(torch.ones(4, 256)) == 256  # nothing to win
    spiked = torch.full((4, 256), 0.01)
    spiked[:, 0] = 1.0  # one part in eight pays for the largest value
    assert choose_group(spiked) == 32
    assert choose_group(torch.zeros(4, 256)) == 256
    halves = torch.full((4, 256), 0.01)
    halves[:, ::64] = 1.0  # every 64 inputs have one: cuts down to 64 win nothing
    assert choose_group(halves) == 256
    loud = torch.ones(4, 256)
    loud[:, :128] *= 8.0
    assert choose_group(loud) == 128


def test_what_a_cut_has_to_win_is_what_its_scales_cost() -> None:
    for gain, wanted in ((0.9, 128), (1.1, 64)):  # 16 / 64 - 16 / 128 bits, from 128 inputs to 64
        ratio = 2.0 ** (gain * (16 / 64 - 16 / 128))
        low = (2 / ratio**2 - 1) ** 0.5  # root mean square of 1 and this is 1 / ratio
        weight = torch.ones(2, 128)
        weight[:, 64:] = low
        assert choose_group(weight) == wanted


# Layouts


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_lie_in_words_from_the_lowest_bits(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 96), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    packed, per = pack_codes(codes, bits), 32 // bits
    assert packed.shape == (5, 96 // per)
    for row, column in ((0, 0), (4, 95), (2, 41), (3, 17)):
        word = int(packed[row, column // per]) & 0xFFFFFFFF
        assert word >> (bits * (column % per)) & (2**bits - 1) == codes[row, column]


@pytest.mark.parametrize(("kind", "bits", "is_shifted"), [("Q8_0", 8, False), ("Q4_0", 4, False), ("Q4_1", 4, True)])
@pytest.mark.parametrize("group", [32, 96])
def test_blocks_are_read_back_by_gguf(kind: str, bits: int, is_shifted: bool, group: int) -> None:
    rounded = round_matrix(matrix(), bits, group, is_shifted=is_shifted)
    theirs = dequantize(encode(rounded, kind).numpy(), GGMLQuantizationType[kind])
    assert torch.equal(torch.from_numpy(theirs), rounded.dense())


# GGUF files


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_file_holds_the_same_model(tmp_path: Path, tokenizer: Tokenizer, family: str) -> None:
    folder = write(tmp_path / "model", tokenizer, family, torch.float32)
    file = write_plain(folder, tmp_path / "plain.gguf", torch.float32)
    ids = torch.tensor([[5, 17, 300, 4, 99, 250, 7]])
    found = []
    for path in (folder, file):
        target = load_model(path, dtype="float32")
        cache = target.new_cache(1, 16)
        found.append(target.score(ids, torch.arange(7)[None], None, cache).logits)
    if family == "llama3":  # factors are stored in float32
        assert torch.allclose(*found, atol=1e-5)
    else:
        assert torch.equal(*found)


@pytest.mark.parametrize(("to", "group"), [("int8", "32"), ("int4", "32"), ("int4", "adaptive"), ("int4", "row")])
def test_a_gguf_file_is_what_was_rounded(model: Path, tmp_path: Path, to: str, group: str) -> None:
    """Its numbers, decoded by the `gguf` package, are those of the matrices rounded one by one."""
    plan = Plan(bits=int(to[3:]), group=group)
    source, out = open_source(str(model)), tmp_path / "out.gguf"
    written = convert(source, plan, out)
    assert written.num_bytes == out.stat().st_size <= needed_bytes(source, plan)
    assert sum(written.groups.values()) == 14
    assert written.bits_per_weight == plan.bits + 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    plain, lm = load_file(model / "model.safetensors"), outpace.load(out, is_compiled=False)
    tensors = {tensor.name: tensor for tensor in GGUFReader(out).tensors}
    name = "model.layers.1.mlp.down_proj.weight"
    size = {"32": 32, "row": 96, "adaptive": choose_group(plain[name])}[group]
    wanted = round_matrix(plain[name], plan.bits, size).dense()
    block = tensors["blk.1.ffn_down.weight"]
    assert np.array_equal(dequantize(block.data, block.tensor_type), wanted.numpy())
    assert tensors["token_embd.weight"].tensor_type == GGMLQuantizationType.Q8_0
    # The engine reads the same numbers, and the same text.
    ours = outpace.load(model, is_compiled=False)
    assert lm.tokenizer is not None and ours.tokenizer is not None
    assert lm.tokenizer.encode(TEXT) == ours.tokenizer.encode(TEXT)
    assert lm.tokenizer.templates == ours.tokenizer.templates
    assert lm.end_tokens == ours.end_tokens
    assert torch.equal(down(out), wanted)
    assert bits_per_byte(lm, TEXT) == pytest.approx(bits_per_byte(ours, TEXT), rel=0.2 if to == "int4" else 0.02)


def test_llama_cpp_reads_the_file(model: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    for bits in (4, 8):
        out = tmp_path / f"out{bits}.gguf"
        convert(open_source(str(model)), Plan(bits=bits), out)
        theirs = llama_cpp.Llama(str(out), n_ctx=256, n_threads=1, logits_all=True, verbose=False)
        ours = outpace.load(out, dtype="float32", is_compiled=False)
        assert ours.tokenizer is not None
        ids = ours.tokenizer.encode(TEXT)[:48]
        assert theirs.tokenize(TEXT.encode(), add_bos=True, special=True)[:48] == ids
        theirs.eval(ids)
        cache = ours.target.new_cache(1, 64)
        logits = ours.target.score(torch.tensor([ids]), torch.arange(48)[None], None, cache).logits[0]
        pair = torch.stack([logits.flatten(), torch.from_numpy(theirs.scores[:48].copy()).flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.999  # its activations have 8 bits


def test_a_tokenizer_that_no_name_describes_comes_along(tmp_path: Path, tokenizer: Tokenizer) -> None:
    other = Tokenizer.from_str(tokenizer.to_str())
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("o"), "isolated"), letters])
    folder = write(tmp_path / "model", other)
    written = convert(open_source(str(folder)), Plan(bits=8), tmp_path / "out.gguf")
    assert any("no name" in note for note in written.notes)
    lm = outpace.load(tmp_path / "out.gguf")
    assert lm.tokenizer is not None
    ids = lm.tokenizer.encode(TEXT)
    assert ids == other.encode(TEXT).ids != tokenizer.encode(TEXT).ids


def test_what_a_gguf_file_cannot_say_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plan, out = Plan(bits=4), tmp_path / "out.gguf"
    for number, (more, words) in enumerate(
        {
            "olmo2": "not written here",
            "yarn": "Rotary scaling 'yarn'",
        }.items()
    ):
        scaling = {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}} if more == "yarn" else {"model_type": more}
        folder = write(tmp_path / f"model{number}", tokenizer, **scaling)
        with pytest.raises(ModelError, match=words):
            convert(open_source(str(folder)), plan, out)
    folder = write(tmp_path / "extra", tokenizer)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.extra.weight": torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"no place for the tensor model\.extra\.weight"):
        convert(open_source(str(folder)), plan, out)
    assert not list(tmp_path.glob("out*"))


# compressed-tensors


def unpacked(tensors: dict[str, Tensor], name: str, bits: int) -> Tensor:
    """Decode one matrix number by number, from the published layout."""
    packed, scale = tensors[f"{name}_packed"].tolist(), tensors[f"{name}_scale"].float()
    rows, columns = tensors[f"{name}_shape"].tolist()
    per, group, found = 32 // bits, columns // scale.shape[1], torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            code = packed[row][column // per] >> (bits * (column % per)) & (2**bits - 1)
            found[row, column] = (code - 2 ** (bits - 1)) * scale[row, column // group]
    return found


@pytest.mark.parametrize(("to", "group"), [("int8", "32"), ("int4", "row"), ("int4", "adaptive")])
def test_a_folder_is_what_was_rounded(model: Path, tmp_path: Path, to: str, group: str) -> None:
    plan, out = Plan(bits=int(to[3:]), group=group, format="compressed-tensors"), tmp_path / "out"
    written = convert(open_source(str(model)), plan, out)
    tensors, plain = load_file(out / "model.safetensors"), load_file(model / "model.safetensors")
    told = json.loads((out / "config.json").read_text())["quantization_config"]
    sizes = {scheme["weights"].get("group_size", 0) for scheme in told["config_groups"].values()}
    for name in ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        columns = plain[name].shape[1]
        size = {"32": 32, "row": columns, "adaptive": choose_group(plain[name])}[group]
        wanted = round_matrix(plain[name], plan.bits, size, torch.bfloat16)
        assert torch.equal(unpacked(tensors, name, plan.bits), wanted.dense())
        assert (0 if size == columns else size) in sizes
    assert torch.equal(tensors["lm_head.weight"], plain["lm_head.weight"])
    assert told["ignore"] == ["lm_head"]
    assert {"tokenizer.json", "tokenizer_config.json", "config.json"} < {path.name for path in out.iterdir()}
    assert written.num_bytes == sum(path.stat().st_size for path in out.iterdir())


def test_odd_rows_have_small_groups_in_a_folder_and_stay_plain_in_a_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = write(tmp_path / "model", tokenizer, intermediate_size=80)
    source = open_source(str(folder))
    written = convert(source, Plan(bits=4, format="compressed-tensors", group="64"), tmp_path / "out")
    assert written.groups == Counter({64: 12, 16: 2})
    file = convert(source, Plan(bits=4), tmp_path / "out.gguf")
    assert file.kept == [f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(2)]
    assert any("kept as stored" in note for note in file.notes)
    stored = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "out.gguf").tensors}["blk.0.ffn_down.weight"]
    assert stored.tensor_type == GGMLQuantizationType.BF16
    plain = load_file(folder / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
    assert np.array_equal(stored.data.view(np.uint8).reshape(-1), plain.view(torch.uint8).numpy().reshape(-1))


def test_the_engine_reads_its_folders(model: Path, tmp_path: Path) -> None:
    convert(open_source(str(model)), Plan(bits=4, format="compressed-tensors", group="adaptive"), tmp_path / "out")
    found = down(tmp_path / "out")
    name, plain = "model.layers.1.mlp.down_proj.weight", load_file(model / "model.safetensors")
    wanted = round_matrix(plain[name], 4, choose_group(plain[name]), torch.bfloat16).dense()
    assert torch.equal(found, wanted)


@pytest.mark.filterwarnings("ignore:You passed .quantization_config.")  # that the weights are to be decoded
@pytest.mark.parametrize("group", ["32", "row", "adaptive"])
def test_transformers_reads_the_folder(model: Path, tmp_path: Path, group: str) -> None:
    pytest.importorskip("compressed_tensors")
    import transformers

    for bits in (4, 8):
        out = tmp_path / f"out{bits}"
        convert(open_source(str(model)), Plan(bits=bits, format="compressed-tensors", group=group), out)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            out, quantization_config=transformers.CompressedTensorsConfig(dequantize=True), dtype=torch.bfloat16
        )
        tensors, state = load_file(out / "model.safetensors"), theirs.state_dict()
        for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"):
            assert torch.equal(state[name], unpacked(tensors, name, bits).bfloat16())


# Places, and what goes wrong


def test_a_run_that_ends_early_leaves_what_was_there(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(model))
    for form, name in (("gguf", "out.gguf"), ("compressed-tensors", "out")):
        out = tmp_path / form / name
        out.parent.mkdir()
        plan = Plan(bits=8, format=form)
        convert(source, plan, out)
        before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}

        def stop(what: str, done: int, total: int) -> None:
            if done > total / 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert(source, plan, out, stop)
        assert before == {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
        convert(source, Plan(bits=4, format=form), out)  # replaced as a whole
        assert {path.name for path in out.parent.iterdir()} == {name}
        assert sum(len(data) for data in before.values()) > sum(
            path.stat().st_size for path in out.parent.rglob("*") if path.is_file()
        )
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(converting.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageError, match="MB are free"):
        convert(source, Plan(bits=8), tmp_path / "more.gguf")


def test_a_disk_that_fills_up_is_said_so(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The last two as numpy and safetensors say it.
    for error in (OSError(28, os.strerror(28)), OSError("9 requested and 5 written"), SafetensorError("No space left")):

        def full(*arguments: object, error: Exception = error, **more: object) -> None:
            raise error

        monkeypatch.setattr(converting, "write_folder", full)
        with pytest.raises(StorageError, match="could not be written whole"):
            convert(open_source(str(model)), Plan(bits=8, format="compressed-tensors"), tmp_path / "out")
        assert not list(tmp_path.iterdir())


def test_places_that_would_lose_something_are_refused(model: Path, tmp_path: Path) -> None:
    source, gguf, folder = open_source(str(model)), Plan(bits=8), Plan(bits=8, format="compressed-tensors")
    file, other = tmp_path / "file.gguf", tmp_path / "other"
    file.write_text("x")
    other.mkdir()
    with pytest.raises(ConfigError, match="exists"):
        check_output(file, gguf, source, is_forced=False)
    check_output(file, gguf, source, is_forced=True)
    for out, plan in ((file, folder), (other, gguf), (other, folder)):
        with pytest.raises(ConfigError, match="not what this command writes"):
            check_output(out, plan, source, is_forced=True)
    for out in (model, model.parent):
        with pytest.raises(ConfigError, match="holds the model itself"):
            check_output(out, folder, source, is_forced=True)
    with pytest.raises(ConfigError, match="no folder"):
        check_output(tmp_path / "no" / "where.gguf", gguf, source, is_forced=False)


def test_models_that_are_not_quantised(tmp_path: Path, tokenizer: Tokenizer, model: Path) -> None:
    for name, words in {"stories-mask": "outpace_masked_llama", "translate": "marian"}.items():
        with pytest.raises(ModelError, match=words):
            open_source(name)
    convert(open_source(str(model)), Plan(bits=8, format="compressed-tensors"), tmp_path / "out")
    with pytest.raises(ModelError, match="quantised already"):
        open_source(str(tmp_path / "out"))
    folder = write(tmp_path / "model", tokenizer)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][5, 7] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    for form in converting.FORMATS:
        with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj.*not a number"):
            convert(open_source(str(folder)), Plan(bits=4, format=form), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ModelError, match=r"Groups of 128 do not divide the 96 inputs"):
        convert(open_source(str(model)), Plan(bits=4, group="128"), tmp_path / "new")


def test_plans_that_do_not_go_together() -> None:
    for settings in (
        {"bits": 5},
        {"bits": 4, "group": "48"},
        {"bits": 4, "format": "onnx"},
        {"bits": 8, "is_shifted": True},
        {"bits": 4, "is_shifted": True, "format": "compressed-tensors"},
    ):
        with pytest.raises(ConfigError):
            Plan(**settings)  # type: ignore[arg-type]
    assert Written(Path()).groups == Counter()
