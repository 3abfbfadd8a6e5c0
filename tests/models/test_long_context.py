"""Texts that grow past a rotary scaling's first length, against transformers; memory that grows with the text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from shapes import GROUPED, lifted, longrope, make_model, reference_logits, rope

from outpace import LanguageModel, kernels, load
from outpace.cache import FIRST_SLOTS, Cache
from outpace.errors import ModelError
from outpace.models.loading import ZOO, load_model, read_capabilities
from outpace.models.rotation import MOST_PHASES

SHORT = 24  # tokens before the scalings below change anything
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": SHORT}
KINDS: dict[str, tuple[type[Any], dict[str, Any], int]] = {  # config, its rotary part, the context it leads to
    "longrope": (hf.Phi3Config, longrope(SHORT) | {"max_position_embeddings": 96, "pad_token_id": 0}, 96),
    "dynamic": (hf.LlamaConfig, rope("dynamic", factor=4.0) | {"max_position_embeddings": SHORT}, 96),
    "linear": (hf.LlamaConfig, rope("linear", factor=4.0) | {"max_position_embeddings": SHORT}, 96),
    "yarn": (hf.LlamaConfig, rope("yarn", factor=4.0) | {"max_position_embeddings": SHORT}, 96),
    "llama3": (hf.LlamaConfig, rope("llama3", **LLAMA3) | {"max_position_embeddings": 80}, 80),
}
IDS = torch.randint(1, 131, (60,), generator=torch.Generator().manual_seed(5)).tolist()


def written(directory: Path, prompt: list[int], count: int) -> list[int]:
    """What transformers writes; loaded anew, since dynamic scaling remembers the longest text it has seen."""
    model = hf.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    model.generation_config.eos_token_id = None
    settings = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0}
    found: list[int] = model.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()
    return found


@pytest.fixture(scope="module", params=KINDS)
def saved_kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    maker, part, _ = KINDS[request.param]
    model = make_model(maker(**GROUPED | part))
    directory = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(directory)
    return request.param, directory, model


def test_texts_past_the_first_length_are_transformers(saved_kind: tuple[str, Path, Any]) -> None:
    kind, directory, _ = saved_kind
    assert read_capabilities(directory).max_positions == KINDS[kind][2]
    lm = LanguageModel(load_model(directory, "float64"))
    compiled = LanguageModel(load_model(directory, "float32", kernels=kernels))
    prompts = [IDS, IDS[: SHORT - 3], IDS[:5]]  # beyond it, across it, within it
    plain = [lm.generate(prompt, max_tokens=12).tokens for prompt in prompts]
    assert plain == [written(directory, prompt, 12) for prompt in prompts]
    for other in (lm, compiled):  # rows of both kinds side by side, and drafts across the turn
        for method in ("autoregressive", "prompt-lookup", "lookahead"):
            assert [row.tokens for row in other.generate(prompts, max_tokens=12, method=method)] == plain


def test_one_forward_over_a_long_text_turns_as_transformers_does(saved_kind: tuple[str, Path, Any]) -> None:
    _, directory, model = saved_kind
    ours, ids = load_model(directory, "float64"), torch.tensor([IDS])
    logits = ours.score(ids, torch.arange(len(IDS))[None], None, ours.new_cache(1, len(IDS))).logits
    expected = reference_logits(lifted(model), ids)
    assert float((logits - expected).abs().max() / expected.abs().max()) < 1e-9


def test_a_context_may_be_asked_for(tmp_path: Path) -> None:
    model = make_model(hf.LlamaConfig(**GROUPED | rope("default") | {"max_position_embeddings": SHORT}))
    model.save_pretrained(tmp_path)
    assert read_capabilities(tmp_path).max_positions == SHORT
    assert load_model(tmp_path, context=100).capabilities.max_positions == 100
    assert load_model(tmp_path, context=10).capabilities.max_positions == 10
    config = json.loads((tmp_path / "config.json").read_text())
    scaling = {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4}, "rope_parameters": None}
    (tmp_path / "config.json").write_text(json.dumps(config | scaling))
    with pytest.raises(ModelError, match="lacks"):
        load_model(tmp_path)


@pytest.mark.parametrize("is_compiled", [True, False])
def test_a_long_context_costs_memory_only_where_it_is_used(is_compiled: bool, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(ZOO / "stories", tmp_path / "long"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1 << 20}))
    lm, calls = load(directory, is_compiled=is_compiled), iter([False, False, True])
    result = lm.generate("Once", max_tokens=10**9, ignore_eos=True, is_cancelled=lambda: next(calls))
    assert len(result.tokens) == 2
    cache = lm.target.new_cache(1, 1 << 20)
    assert (cache.capacity, cache.slots) == (1 << 20, FIRST_SLOTS)
    ids = torch.zeros(1, 1 + FIRST_SLOTS, dtype=torch.int64)
    lm.target.score(ids, torch.arange(ids.shape[1])[None], None, cache, ask=torch.tensor([[0]]))
    assert cache.slots == 2 * FIRST_SLOTS
    compiled = lm.target._compiled
    rotation = compiled._rotation if compiled is not None else lm.target._layouts.rotation
    assert max(len(cos) for tables in rotation._known.values() for cos, _ in tables) <= 4 * FIRST_SLOTS


def test_growing_keeps_entries_rows_and_phases() -> None:
    cache = Cache([torch.arange(8.0).view(2, 4, 1)], 1, lengths=[3, 2], limit=40)
    cache.phases = [0, 7]
    fork = cache.fork()
    cache.reserve(4)
    assert cache.slots == 4 and fork.buffers[0] is cache.buffers[0]
    cache.reserve(5)
    assert (cache.slots, cache.capacity) == (8, 40) and cache.buffers[0][:, :4, 0].tolist() == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ]
    assert fork.phases == [0, 7] and fork.slots == 4
    joined = Cache.join([cache.rows([1]), Cache([torch.zeros(1, 16, 1)], 1, limit=50)])
    assert (joined.phases, joined.lengths, joined.slots, joined.capacity) == ([7, 0], [2, 0], 16, 50)
    joined.restart(0, 3)
    assert (joined.phases, joined.lengths) == ([3, 0], [0, 0])
    cache.reserve(1000)
    assert cache.slots == 40


def test_few_phases_are_kept(tmp_path: Path) -> None:
    maker, part, _ = KINDS["dynamic"]
    make_model(maker(**GROUPED | part)).save_pretrained(tmp_path)
    lm = LanguageModel(load_model(tmp_path, "float64"))
    for size in range(SHORT + 1, SHORT + 4 + MOST_PHASES):
        lm.generate(IDS[:size], max_tokens=1)
    assert len(lm.target._layouts.rotation._known) == MOST_PHASES
