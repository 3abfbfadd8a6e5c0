from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from outpace.bench import MicroOptions, memory, run_micro
from outpace.bench.micro import _memory_jobs
from outpace.bench.overhead import overhead
from outpace.bench.shapes import SIZES, PlainTorch, random_llama, streamed
from outpace.models.loading import load_model


def test_quick_run(tmp_path: Path) -> None:
    file, text = tmp_path / "micro.json", tmp_path / "micro.md"
    parts = ("forward", "plain", "overhead")
    report = run_micro(MicroOptions(quick=True, parts=parts, widths=(1, 16), json=file, markdown=text))
    document = json.loads(file.read_text())
    assert document["kind"] == "micro"
    assert {row["kind"] for row in document["rows"]} == set(parts)
    forward = [row for row in document["rows"] if row["kind"] == "forward"]
    assert {row["k"] for row in forward} == {1, 16}
    assert {"eager", "torch"} <= {row["path"] for row in forward}
    assert "Outside the forwards" in text.read_text()
    assert report.renderable() is not None


def test_memory_of_a_fresh_process(tiny: Path) -> None:
    job = _memory_jobs(tiny, "bfloat16")["eager"]
    found = memory.measure(job, list(range(20)), 8, 1)
    assert "error" not in found
    assert found["weights"] == 2 * memory.stored_parameters(tiny)
    assert found["cache"] > 0
    assert found["tokens"] == 8
    broken = memory.measure({**job, "directory": str(tiny / "nowhere")}, [1], 1, 1)
    assert "error" in broken


@pytest.mark.parametrize("method", ["fixed-chain", "prompt-lookup"])
@pytest.mark.parametrize("law", ["greedy", "T 0.7, top-k 50, top-p 0.9"])
def test_the_chain_of_16_is_accepted(method: str, law: str) -> None:
    found = overhead(512, law, method, steps=3, repeats=1)
    assert found["tokens_per_step"] == 17
    assert found["total_ms"] > 0


def test_plain_torch_is_the_same_model(tiny: Path) -> None:
    """What ours is compared with computes the same thing."""
    plain = PlainTorch(tiny, torch.float32, 64)
    model = load_model(tiny, dtype="float32")
    cache = model.new_cache(1, 64)
    tokens = torch.arange(20) * 7
    ours = model.score(tokens[None, :19], torch.arange(19)[None], None, cache).logits[0]
    assert (plain(tokens[:19], 0) - ours).abs().max() < 1e-4 * ours.abs().max()
    cache.keep([range(19)])
    last = model.score(tokens[None, 19:], torch.tensor([[19]]), None, cache).logits[0]
    assert (plain(tokens[19:], 19) - last).abs().max() < 1e-4 * last.abs().max()


def test_sizes_are_those_of_the_peers(tmp_path: Path) -> None:
    assert streamed("30m") + SIZES["30m"]["vocab"] * 512 == 31_990_272
    assert streamed("350m") + SIZES["350m"]["vocab"] * 1024 == 348_701_696
    assert memory.stored_parameters(random_llama("tiny", tmp_path / "a")) == streamed("tiny") + 512 * 64
