"""The GPU command's parts, on the CPU: what it compares, what it times, what it leaves out, what it calls wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from outpace.api.engine import LanguageModel
from outpace.bench import gpu
from outpace.bench.prompts import Prompt
from outpace.bench.random_llama import first_layers, hf_twin, random_decoder


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(random_decoder("tiny", "float64", "cpu"), name="random tiny", dtype="float64", device="cpu")


def test_the_twin_is_the_same_model(lm: LanguageModel) -> None:
    ids, places = torch.randint(512, (1, 20), generator=torch.Generator().manual_seed(1)), torch.arange(20)[None]
    twin = hf_twin(lm.target)
    with torch.no_grad():
        theirs = twin(ids).logits
    ours = lm.target.score(ids, places, None, lm.target.new_cache(1, 20)).logits
    # Their rotations are computed in float32, ours in float64.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    assert twin.lm_head.weight.data_ptr() == lm.target.weights.head.weight.data_ptr()


def test_exact_methods_are_compared_with_plain_decoding(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_TOKENS", 8)
    budget = gpu.Budget(60.0, lambda text: None)
    names = ["suffix", "draft-model", "typical-acceptance", "fast-dllm"]
    lines = list(gpu.compare_exact(lm, [[5, 6, 7, 5, 6], [9, 8]], "float64", budget, names))
    ours = [line for line in lines if "not_run" not in line]
    assert [(line["method"], line["law"]) for line in ours] == [("suffix", "greedy"), ("suffix", "temperature 0.7")]
    assert all(line["tokens"] == 16 and not line["flips"] and not line["fault"] for line in ours)
    assert [line["method"] for line in lines if "No drafter" in line.get("not_run", "")] == ["draft-model"] * 2
    assert not gpu.faults({"exactness": lines})
    drafted = list(gpu.compare_exact(lm, [[5, 6, 7]], "float64", budget, ["draft-model"], first_layers(lm.target)))
    assert all(line["tokens"] == 8 and not line["flips"] for line in drafted)


def test_a_text_that_leaves_plain_decoding_is_a_fault(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flip below its tolerance is rounding; in float64, and above it, it is wrong."""
    plain = lm.generate([[5, 6, 7]], max_tokens=4, record=("margins",))
    other = lm.generate([[5, 6, 8]], max_tokens=4)
    other[0].tokens[:] = [*plain[0].tokens[:2], (plain[0].tokens[2] + 1) % 512, 1]
    margin = plain[0].margins[2]
    for allowed, is_wrong in ((margin / 2, True), (2 * margin, False), (0.0, True)):
        (flip,) = gpu._flips(plain, other, allowed)
        told = {"index": flip.index, "prompt": 0, "margin": flip.margin, "tolerance": flip.tolerance}
        line = {"method": "m", "model": "x", "dtype": "d", "law": "l", "fault": "", "flips": [told]}
        assert (flip.index, bool(gpu.faults({"exactness": [line]}))) == (2, is_wrong)


def test_arms_write_as_many_tokens_as_transformers(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_TIMED_TOKENS", 6)
    tasks = {Prompt("random", "0", ""): [5, 6, 7, 5, 6, 7, 5]}
    rows = list(gpu.time_arms(lm, tasks, "cpu", gpu.Budget(60.0, lambda text: None), ["autoregressive", "suffix"], 2))
    wanted = ["autoregressive (graphs off)", "suffix (graphs off)", "hf:plain", "hf:prompt-lookup"]
    assert [row["arm"] for row in rows] == wanted
    assert all(row["tokens"] == [6, 6] and row["tokens_per_s"] > 0 for row in rows)


def test_what_does_not_fit_is_skipped_and_written_down(tmp_path: Path) -> None:
    told: list[str] = []
    found = gpu.run(tmp_path, "cpu", 0.0, "tiny", told.append)
    assert not found["checks"] and not found["exactness"] and not found["speed"]
    written = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert "check of noise" in written["skipped"] and "speed of stories" in written["skipped"]
    assert any("skipped for want of time" in line for line in told)


def test_a_part_leaves_time_for_the_next() -> None:
    budget = gpu.Budget(1000.0, lambda text: None)
    with budget.within(0.5), budget.within(0.5):
        assert budget.affords("less", 200.0) and not budget.affords("more", 300.0)
    assert budget.affords("the rest", 900.0) and budget.skipped == ["more"]


def test_checks_that_fail_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_nothing(device: str) -> None:
        raise AssertionError(f"Nothing holds on {device}.")

    monkeypatch.setattr(gpu, "DEVICE_CHECKS", (check_nothing,))
    (entry,) = gpu._checks("cpu", gpu.Budget(60.0, lambda text: None))
    assert gpu.faults({"checks": [entry]}) == ["nothing: Nothing holds on cpu."]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_device_is_a_users_mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    assert "no CUDA device" in capsys.readouterr().out
