"""GGUF models against transformers on the same weights, written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers as hf
from gguf import GGUFWriter, RopeScalingType
from gguf_layouts import CASES, byte_tokenizer, dequantised, divisors, write_gguf
from shapes import lifted, make_model, reference_logits
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import outpace
from outpace.errors import ModelError
from outpace.models.loading import load_model, open_tensors, read_config, resolve
from outpace.models.opening import locate, offered_by
from outpace.models.transformer import Transformer
from outpace.text.gguf_file import read_gguf

IDS = torch.randint(0, 131, (1, 90), generator=torch.Generator().manual_seed(7))
LENGTHS = {"phi3-longrope": 90}  # past the length from which the other divisors hold
SEEDS = {"qwen3": 1, "gpt2": 2, "olmo2": 1}
KINDS = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def logits(model: Transformer, ids: Tensor) -> Tensor:
    return model.score(ids, torch.arange(ids.shape[1])[None], None, model.new_cache(1, ids.shape[1])).logits


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case: str, tmp_path: Path) -> None:
    model = make_model(CASES[case](), SEEDS.get(case, 0))
    for name, weight in model.named_parameters():
        if case.startswith("gemma") and name.endswith("norm.weight"):
            weight.data = weight.data + 1 - 1  # what is left of it in a file that holds the sum
    path = write_gguf(model, tmp_path / "model.gguf")
    reference = lifted(model)
    if case == "llama-llama3":  # files hold what its frequencies are divided by, in float32
        plain = 500.0 ** -(torch.arange(0, 8, 2, dtype=torch.float64) / 8)
        reference.model.rotary_emb.inv_freq = plain / divisors(model.config, model.config.rope_parameters).double()
    ids = IDS[:, : LENGTHS.get(case, 40)]
    expected = reference_logits(reference, ids)
    limit = 1e-6 if case == "phi3-longrope" else 1e-9  # its scale is a float32 in the file
    assert distance(logits(load_model(path, "float64"), ids), expected) <= limit
    assert distance(logits(load_model(path, "float32", pack=False), ids), expected) <= 1e-4


def _scaled(kind: str, factor: float) -> Callable[[GGUFWriter], None]:
    def add(writer: GGUFWriter) -> None:
        if kind:
            writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(32)

    return add


@pytest.mark.parametrize("kind", ["", "none", "linear", "yarn"])
@pytest.mark.parametrize("case", ["llama", "llama-llama3"])
def test_a_scaling_holds_beside_divisors_as_llama_cpp_has_it(case: str, kind: str, tmp_path: Path) -> None:
    model = make_model(CASES[case]())
    path = write_gguf(model, tmp_path / "model.gguf", more=_scaled(kind, 4.0))
    reference = lifted(model)
    settings = model.config.rope_parameters
    theta, turned = settings["rope_theta"], reference.model.rotary_emb
    apart = divisors(model.config, settings).double() if case == "llama-llama3" else 1.0
    frequencies, scale = reference.model.rotary_emb.inv_freq, 1.0
    if case == "llama-llama3":
        frequencies = theta ** -(torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    if kind == "yarn":  # as transformers computes it, from 32 tokens on
        said = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": theta}
        config = type(model.config)(**{**model.config.to_dict(), "rope_parameters": said})
        frequencies, scale = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    elif kind != "none":
        frequencies = frequencies / 4.0
    turned.inv_freq, turned.attention_scaling = frequencies.double() / apart, scale
    expected = reference_logits(reference, IDS[:, :40])
    assert distance(logits(load_model(path, "float64"), IDS[:, :40]), expected) <= (1e-6 if kind == "yarn" else 1e-9)


@pytest.fixture(scope="module")
def wide() -> hf.PreTrainedModel:
    """A Llama whose rows fill blocks."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    return make_model(hf.LlamaConfig(vocab_size=131, num_hidden_layers=2, max_position_embeddings=96, **shape))


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_files_are_the_numbers_in_them(kind: str, wide: hf.PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(wide, tmp_path / "model.gguf", kind)
    files = open_tensors(path)
    model = hf.LlamaForCausalLM(wide.config).eval()
    model.load_state_dict({name: files.read(name, tuple(w.shape)) for name, w in wide.state_dict().items()})
    assert torch.equal(model.model.embed_tokens.weight, dequantised(path, "token_embd.weight").float())
    rounded = {"F16": 1e-3, "BF16": 1e-2, "Q8_0": 2e-2}.get(kind, 0.3)
    for name, weight in wide.state_dict().items():  # query and key rows too lie where they were
        assert distance(model.state_dict()[name], weight) <= rounded, name
    ids = IDS[:, :40]
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
    assert distance(logits(load_model(path, "float32", pack=False), ids), expected) <= 1e-4
    assert files.unused() == []


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_codes_are_handed_over_in_the_order_of_the_plain_rows(
    case: str, wide: hf.PreTrainedModel, tmp_path: Path
) -> None:
    config = hf.GPT2Config(vocab_size=131, n_embd=64, n_layer=1, n_head=4, n_positions=96)
    path = write_gguf(wide if case == "llama" else make_model(config), tmp_path / "model.gguf", "Q5_1")
    files, seen = open_tensors(path), 0
    for name, entry in files.entries.items():
        is_turned = ".c_" in name  # GPT-2's plain matrices lie [in, out]
        found = files.read_quantised(name, entry.shape[::-1] if is_turned else entry.shape)
        if found is not None:
            plain = files.read(name, entry.shape)
            assert torch.equal(found.dense(), plain.t() if is_turned else plain), name
            seen += 1
    assert seen == (16 if case == "llama" else 6)


def test_split_files_and_folders_are_one_model(wide: hf.PreTrainedModel, tmp_path: Path) -> None:
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = write_gguf(wide, tmp_path / "whole" / "model.gguf")
    write_gguf(wide, tmp_path / "parts" / "model.gguf", split=8)
    parts = sorted((tmp_path / "parts").glob("*.gguf"))
    assert len(parts) == 3
    expected = logits(load_model(whole, "float32", pack=False), IDS)
    for name in (parts[0], parts[2], tmp_path / "parts"):
        assert resolve(name) == parts[0]
        assert locate(str(name)) == (parts[0], True)
        assert torch.equal(logits(load_model(name, "float32", pack=False), IDS), expected)
    assert resolve(whole.parent) == whole
    (whole.parent / "mmproj-model.gguf").write_bytes(b"GGUF")  # what sees images stands beside models
    assert resolve(whole.parent) == whole
    (whole.parent / "other.gguf").write_bytes(b"GGUF")
    refuses(whole.parent, "holds 2 GGUF models")
    parts[1].rename(tmp_path / "away.gguf")
    refuses(parts[0], f"{parts[1].name} is missing")
    (tmp_path / "away.gguf").rename(parts[1])
    parts[1].write_bytes(parts[2].read_bytes())
    refuses(parts[0], "another part")


def refuses(path: Path, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


CONTRADICTIONS = {
    "an architecture that is not read": ("general.architecture", "mamba", "architecture 'mamba'"),
    "experts": ("llama.expert_count", 8, "mixture of experts"),
    "no layers stated": ("llama.block_count", None, "does not say llama.block_count"),
    "more layers than tensors": ("llama.block_count", 4_000_000_000, "holds fewer tensors"),
    "more layers than there are": ("llama.block_count", 3, r"lacks model\.layers\.2"),
    "fewer layers than there are": ("llama.block_count", 1, "has no place in this model"),
    "other heads": ("llama.attention.head_count_kv", 4, r"shape .* for blk\.0\.attn_k"),
    "no heads": ("llama.attention.head_count", 0, "head_count 0"),
    "another width": ("llama.embedding_length", 32, "shape"),
    "another vocabulary": ("llama.vocab_size", 50, "131 rows for 50 tokens"),
    "more tokens than rows": ("tokenizer.ggml.tokens", [str(i) for i in range(140)], "131 rows for 140 tokens"),
    "a width as text": ("llama.embedding_length", "64", "which is no whole number"),
    "values of another size": ("llama.attention.value_length", 8, "another size than keys"),
    "turning more than a head": ("llama.rope.dimension_count", 64, "turns 64 dimensions"),
    "an unknown scaling": ("llama.rope.scaling.type", "spiral", "scales rotations by 'spiral'"),
    "heads layer by layer": ("llama.attention.head_count", torch.tensor([4, 2]).numpy(), "layer by layer"),
}


@pytest.fixture
def head(wide: hf.PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, dict]]:
    """A file and its metadata, which a test may change before the model is opened."""
    path = write_gguf(wide, tmp_path / "model.gguf")
    found = read_gguf(path)
    metadata = dict(found.metadata)
    changed = type(found)(path, metadata, found.tensors)
    monkeypatch.setattr("outpace.models.loading.read_gguf", lambda _: changed)
    yield path, metadata


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_metadata_that_contradict_the_tensors_are_refused(case: str, head: tuple[Path, dict]) -> None:
    path, metadata = head
    key, value, words = CONTRADICTIONS[case]
    metadata[key] = value
    refuses(path, words)


def test_the_config_is_the_one_that_the_file_was_made_from(wide: hf.PreTrainedModel, tmp_path: Path) -> None:
    found = read_config(write_gguf(wide, tmp_path / "model.gguf", "BF16"))
    theirs = wide.config.to_dict()
    for key in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "intermediate_size", "rms_norm_eps"):
        assert found[key] == theirs[key]
    assert found["dtype"] == "bfloat16"
    assert load_model(tmp_path / "model.gguf", device="cpu").dtype == torch.bfloat16


def test_one_file_answers_as_the_directory_that_it_was_made_from(tiny: Path, tmp_path: Path) -> None:
    """Weights, tokenizer, chat template and end tokens, all out of one file."""
    state = json.loads((tiny / "tokenizer.json").read_text())["model"]
    settings = json.loads((tiny / "tokenizer_config.json").read_text())
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    end = tokens.index(settings["eos_token"])

    def more(writer: GGUFWriter) -> None:
        merges = [" ".join(pair) for pair in state["merges"]]
        byte_tokenizer(writer, tokens, merges, [3 if index == end else 1 for index in range(len(tokens))])
        writer.add_eos_token_id(end)
        writer.add_chat_template(settings["chat_template"])

    model = hf.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    path = write_gguf(model, tmp_path / "model.gguf", more=more)
    theirs, ours = (outpace.load(where, dtype="float64", is_compiled=False) for where in (tiny, path))
    assert ours.end_tokens == theirs.end_tokens == (end,)
    asked = [{"role": "user", "content": "the quick brown fox"}]
    for method in ("autoregressive", "prompt-lookup"):
        found = ours.generate([asked, "the lazy dog"], max_tokens=12, method=method)
        wanted = theirs.generate([asked, "the lazy dog"], max_tokens=12)
        assert [one.prompt_tokens for one in found] == [one.prompt_tokens for one in wanted]
        assert [one.text for one in found] == [one.text for one in wanted]
    assert repr(ours).splitlines()[1:] == repr(theirs).splitlines()[1:]
    assert offered_by(str(path)) == ours.target.capabilities


def test_dtypes_and_notes(wide: hf.PreTrainedModel, tmp_path: Path) -> None:
    half = load_model(write_gguf(wide, tmp_path / "half.gguf", "F16"), device="cpu")
    assert half.dtype == torch.bfloat16
    assert "float16" in half.notes[-1]
    few = write_gguf(wide, tmp_path / "few.gguf", "Q4_0")
    decoded = load_model(few, device="cpu")
    assert decoded.dtype == torch.bfloat16
    assert "Q4_0" in decoded.notes[-1]
    assert load_model(few, "float32", "cpu").notes == []
    with pytest.raises(ModelError, match="transformers is not asked"):
        locate(f"hf:{tmp_path / 'half.gguf'}")
