from __future__ import annotations

import json
from pathlib import Path

import pytest

from outpace.api.engine import LanguageModel
from outpace.bench import GrowthOptions, run_growth
from outpace.bench.growth import crossings
from outpace.bench.replay import Replay
from outpace.errors import ConfigError
from outpace.models.loading import load_model


def test_crossings_on_a_logarithmic_axis() -> None:
    # From 2 at 1 to 0.5 at 8, 1 is passed at two thirds of three doublings: 4. From 0.5 to 1.5, at half a doubling.
    found = crossings([(1, 2.0), (8, 0.5), (16, 1.5), (32, 1.2)])
    assert [(pytest.approx(at), falls) for at, falls in found] == [(4.0, True), (8 * 2**0.5, False)]
    assert crossings([(1, 1.0), (2, 1.5)]) == []


def test_replayed_drafts_are_accepted_as_said(tiny: Path) -> None:
    lm = LanguageModel(load_model(tiny, dtype="float32"), None, name="tiny")
    prompts = [[1, 2, 3], [4, 5, 6, 7]]
    plain = lm.generate(prompts, max_tokens=10, ignore_eos=True)
    texts = {tuple(prompt): result.tokens for prompt, result in zip(prompts, plain, strict=True)}
    right = lm.generate(prompts, method=Replay(texts, 1.0, 4, 512), max_tokens=10, ignore_eos=True)
    assert [result.tokens for result in right] == [result.tokens for result in plain]
    # Four drafts and a bonus token per step: two steps for ten tokens.
    assert [result.usage.num_steps for result in right] == [2, 2]
    some = lm.generate(prompts, method=Replay(texts, 0.5, 4, 512), max_tokens=10, ignore_eos=True)
    assert [result.tokens for result in some] == [result.tokens for result in plain]
    assert all(2 < result.usage.num_steps < 10 for result in some)


def test_the_document(tiny: Path, tmp_path: Path) -> None:
    files = {"json": tmp_path / "growth.json", "plot": tmp_path / "growth.png", "markdown": tmp_path / "growth.md"}
    options = GrowthOptions(
        model=str(tiny),
        is_compiled=False,
        batches=(1, 2),
        contexts=(16, 3000),
        budgets=(1, 4),
        context=16,
        budget=2,
        shares=(1.0,),
        methods=("prompt-lookup:draft_len={budget}", "opt-tree:budget={budget}"),
        max_tokens=6,
        repeats=1,
        **files,
    )
    report = run_growth(options)
    document = json.loads(files["json"].read_text())
    assert document["trained_positions"] == 2048
    points = {(curve["axis"], curve["name"]): curve["points"] for curve in document["rows"]}
    assert [point["value"] for point in points["batch", "plain"]] == [1, 2]
    # Beyond the trained positions only replayed drafts are measured; at 2 drafts a step writes 3 tokens.
    assert [point["value"] for point in points["context", "replay, 100% right"]] == [16, 3000]
    assert [point["tokens_per_step"] for point in points["context", "replay, 100% right"]] == [3, 3]
    assert [point["value"] for point in points["context", "prompt-lookup:draft_len=k"]] == [16]
    assert [point["tokens_per_step"] for point in points["budget", "replay, 100% right"]] == [2, 5]
    assert all(point["ratio"] is None for point in points["batch", "plain"])
    # No drafter is known for a model of one's own: named, and the rest goes on.
    assert [item["name"] for item in document["skipped"]] == ["opt-tree:budget={budget}"]
    text = files["markdown"].read_text()
    assert "rows in a batch" in text and "tokens of context" in text and "paying" in text + "paying"
    assert files["plot"].read_bytes()[:4] == b"\x89PNG"
    assert report.renderable() is not None


@pytest.mark.parametrize("wrong", [{"axes": ("width",)}, {"batches": (0,)}, {"shares": (1.5,)}, {"repeats": 0}])
def test_options_that_cannot_be_used(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        GrowthOptions(**wrong)  # type: ignore[arg-type]
