"""Every family against transformers, which writes the files and shares no code with ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from shapes import CASES, greedy, reference_logits, saved
from torch import Tensor

from outpace import kernels
from outpace.models.loading import load_model
from outpace.models.transformer import Transformer

LENGTH = 64


def random_ids(rows: int = 1, length: int = LENGTH) -> Tensor:
    return torch.randint(0, 131, (rows, length), generator=torch.Generator().manual_seed(7))


def prefix_logits(model: Transformer, ids: Tensor) -> Tensor:
    """Logits of one forward over whole rows."""
    position = torch.arange(ids.shape[1]).expand(ids.shape[0], -1)
    return model.score(ids, position, None, model.new_cache(ids.shape[0], ids.shape[1])).logits


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_teacher_forced_equals_transformers(case: str, model_root: Path) -> None:
    directory, reference = saved(case, model_root)
    expected = reference_logits(reference, random_ids())
    for dtype, limit in (("float64", 1e-9), ("float32", 1e-4)):
        for is_packed in (False, True)[: 1 + (dtype == "float32")]:
            model = load_model(directory, dtype, pack=is_packed)
            assert distance(prefix_logits(model, random_ids()), expected) <= limit


COMPILED = [case for case in CASES if not case.startswith(("gemma", "olmo2", "opt-350m"))]


@pytest.mark.skipif(kernels.load_library() is None, reason=kernels.note())
@pytest.mark.parametrize("case", COMPILED)
def test_compiled_equals_transformers(case: str, model_root: Path) -> None:
    """float32 to its rounding; single steps, which kernels compute as they do the whole, by the text."""
    directory, reference = saved(case, model_root)
    model = load_model(directory, "float32", kernels=kernels)
    assert model.path == "compiled"
    assert distance(prefix_logits(model, random_ids()), reference_logits(reference, random_ids())) <= 1e-4
    prompt = random_ids()[0, :8].tolist()
    text = greedy(model, prompt, LENGTH)
    logits = reference_logits(reference, torch.tensor([text]))[0, len(prompt) - 1 : -1]
    written = logits.gather(1, torch.tensor(text[len(prompt) :])[:, None])[:, 0]
    assert bool((logits.amax(1) - written <= 1e-3 * logits.abs().amax()).all())


@pytest.mark.parametrize("case", CASES)
def test_plain_transformers_agrees_up_to_its_float32_islands(case: str, model_root: Path) -> None:
    """Unlifted, in float64: its norms, softmax and rotary tables stay in float32 and set the limit."""
    directory, reference = saved(case, model_root)
    plain = hf.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager")
    with torch.no_grad():
        expected = plain(random_ids()).logits
    model = load_model(directory, "float64")
    assert distance(prefix_logits(model, random_ids()), expected) <= 2e-4
    assert reference.config.model_type == plain.config.model_type


@pytest.mark.parametrize("case", CASES)
def test_greedy_equals_transformers(case: str, model_root: Path) -> None:
    directory, reference = saved(case, model_root)
    prompt = random_ids()[0, :8].tolist()
    text = greedy(load_model(directory, "float64"), prompt, LENGTH)
    chosen = reference_logits(reference, torch.tensor([text]))[0].argmax(-1).tolist()
    assert chosen[len(prompt) - 1 : -1] == text[len(prompt) :]
    assert len(set(text[len(prompt) :])) >= 16


def test_greedy_equals_generate(model_root: Path) -> None:
    """The same claim through transformers' own loop and cache."""
    directory, _ = saved("mistral", model_root)
    plain = hf.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, attn_implementation="eager")
    prompt = random_ids()[:, :8]
    options = {"do_sample": False, "max_new_tokens": LENGTH, "min_new_tokens": LENGTH, "eos_token_id": None}
    text = plain.generate(prompt, attention_mask=torch.ones_like(prompt), pad_token_id=0, **options)
    assert greedy(load_model(directory, "float64"), prompt[0].tolist(), LENGTH) == text[0].tolist()


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_matters(case: str, model_root: Path, tmp_path: Path) -> None:
    """Zeroing any one tensor of the file changes the logits."""
    directory, _ = saved(case, model_root)
    tensors = load_file(directory / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    expected = prefix_logits(load_model(directory, "float64"), random_ids())
    for name, tensor in tensors.items():
        save_file(tensors | {name: torch.zeros_like(tensor)}, tmp_path / "model.safetensors")
        zeroed = load_model(tmp_path, "float64")
        if case.startswith("opt") and name.endswith("k_proj.bias"):
            # It adds the same to all scores of a query, which softmax ignores: only the cache can tell.
            layer = int(name.split(".")[3])
            assert staged_keys(zeroed, layer) != staged_keys(load_model(directory, "float64", pack=False), layer), name
        else:
            assert distance(prefix_logits(zeroed, random_ids()), expected) > 1e-6, name


def staged_keys(model: Transformer, layer: int) -> list[float]:
    cache = model.new_cache(1, LENGTH)
    model.score(random_ids(), torch.arange(LENGTH)[None], None, cache)
    return cache.buffers[2 * layer].flatten().tolist()


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_as_close_as_transformers(case: str, model_root: Path) -> None:
    directory, reference = saved(case, model_root)
    expected = reference_logits(reference, random_ids())
    plain = hf.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, attn_implementation="eager")
    with torch.no_grad():
        theirs = (plain(random_ids()).logits.double() - expected).square().mean().sqrt()
    ours = prefix_logits(load_model(directory, "bfloat16"), random_ids())
    assert (ours.double() - expected).square().mean().sqrt() <= 1.5 * theirs


@pytest.mark.parametrize("case", ["llama", "mistral", "qwen2", "gemma2", "gemma3", "gpt_neox", "opt-350m", "olmo2"])
def test_chunks_ragged_rows_and_trees_equal_whole_prefixes(case: str, model_root: Path) -> None:
    directory, _ = saved(case, model_root)
    model = load_model(directory, "float64")
    ids = random_ids(3, 40)
    whole = prefix_logits(model, ids)
    cache = model.new_cache(3, 60)
    lengths = [5, 17, 11]
    for row, length in enumerate(lengths):  # each row filled alone, in chunks, then joined by hand
        alone = model.new_cache(1, 60)
        for start in range(0, length, 4):
            size = min(4, length - start)
            chunk = slice(start, start + size)
            logits = model.score(ids[row : row + 1, chunk], torch.arange(start, start + size)[None], None, alone).logits
            assert torch.allclose(logits[0], whole[row, chunk], rtol=0, atol=1e-9 * float(whole.abs().max()))
            alone.keep([range(size)])
        for buffer, filled in zip(cache.buffers, alone.buffers, strict=True):
            buffer[row] = filled[0]
    cache.lengths = list(lengths)
    check_ragged(model, ids, whole, cache, lengths)
    check_tree(model, ids, cache, lengths)


def check_ragged(model: Transformer, ids: Tensor, whole: Tensor, cache, lengths: list[int]) -> None:  # type: ignore[no-untyped-def]
    """Rows at different lengths and of different sizes, padded at the right, some positions asked."""
    sizes = [7, 3, 5]
    tokens, position = torch.zeros(3, 7, dtype=torch.int64), torch.full((3, 7), -1)
    for row, (length, size) in enumerate(zip(lengths, sizes, strict=True)):
        tokens[row, :size] = ids[row, length : length + size]
        position[row, :size] = torch.arange(length, length + size)
    ask = torch.tensor([[0, 6], [2, 1], [4, 0]])
    logits = model.score(tokens, position, None, cache, ask).logits
    for row in range(3):
        for column in range(2):
            expected = whole[row, lengths[row] + int(ask[row, column])]
            assert distance(logits[row, column], expected) < 1e-9
    assert model.score(tokens, position, None, cache, ask[:, :0]).logits.shape == (3, 0, 131)


def check_tree(model: Transformer, ids: Tensor, cache, lengths: list[int]) -> None:  # type: ignore[no-untyped-def]
    """Two branches behind a root: each path scores as the same text written out."""
    parent = [-1, 0, 1, 0, 3, 3]
    paths = [[i] if p < 0 else [] for i, p in enumerate(parent)]
    for node, p in enumerate(parent):
        paths[node] = [*(paths[p] if p >= 0 else []), node]
    visible = torch.zeros(6, 6, dtype=torch.bool)
    for node, path in enumerate(paths):
        visible[node, path] = True
    depth = torch.tensor([len(path) - 1 for path in paths])
    nodes = random_ids(3, 6).flip(0)
    position = torch.tensor(lengths)[:, None] + depth
    logits = model.score(nodes, position, visible.expand(3, -1, -1), cache).logits
    for row in range(3):
        for node, path in enumerate(paths):
            text = torch.cat([ids[row, : lengths[row]], nodes[row, path]])[None]
            assert distance(logits[row, node], prefix_logits(model, text)[0, -1]) < 1e-9


def test_tree_path_is_kept(model_root: Path) -> None:
    directory, _ = saved("mistral", model_root)
    model = load_model(directory, "float64")
    ids = random_ids(1, 14)
    cache = model.new_cache(1, 40)
    model.score(ids[:, :8], torch.arange(8)[None], None, cache)
    cache.keep([range(8)])
    nodes = torch.tensor([[int(ids[0, 8]), 3, int(ids[0, 9]), 5]])  # nodes 0 and 2 are the text
    visible = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]], dtype=torch.bool)[None]
    model.score(nodes, torch.tensor([[8, 9, 9, 10]]), visible, cache)
    cache.keep([[0, 2]])
    logits = model.score(ids[:, 10:], torch.arange(10, 14)[None], None, cache).logits
    assert distance(logits, prefix_logits(model, ids)[:, 10:]) < 1e-9


def test_gemma3_inside_an_image_model(model_root: Path, tmp_path: Path) -> None:
    """model_type gemma3: the text model under text_config, image tensors left alone."""
    directory, reference = saved("gemma3", model_root)
    config = json.loads((directory / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config}))
    tensors = load_file(directory / "model.safetensors")
    renamed = {"language_model." + name: tensor for name, tensor in tensors.items()}
    save_file(renamed | {"vision_tower.x": torch.zeros(2)}, tmp_path / "model.safetensors")
    found = prefix_logits(load_model(tmp_path, "float64"), random_ids())
    assert distance(found, reference_logits(reference, random_ids())) < 1e-9


def test_hub_gpt2_names_have_no_prefix(model_root: Path, tmp_path: Path) -> None:
    directory, reference = saved("gpt2", model_root)
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    tensors = load_file(directory / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare | {"h.0.attn.bias": torch.ones(1, 1, 4, 4)}, tmp_path / "model.safetensors")
    found = prefix_logits(load_model(tmp_path, "float64"), random_ids())
    assert distance(found, reference_logits(reference, random_ids())) < 1e-9
