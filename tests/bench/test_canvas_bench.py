"""The canvas benchmark: areas, likelihoods, what counts as close, its pages, and bad input."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import outpace
from outpace.api.engine import LanguageModel
from outpace.bench.canvas import Set, Sweep, SweepPoint, area, likelihood, measure
from outpace.bench.canvas_report import closest, fixed_table, reference_of
from outpace.bench.canvas_run import CanvasOptions, merge
from outpace.bench.canvas_steps import step_times
from outpace.bench.canvas_sweeps import cache_sweeps, causal_sweeps, lossless_sweeps, sampler_sweeps
from outpace.bench.report import new_report, read_report
from outpace.errors import ConfigError
from outpace.methods.registry import load_method
from outpace.models.opening import locate
from outpace.tasks import test_examples as examples_of


def point(quality: float, tokens_per_forward: float, arm: str = "m: threshold", **given: Any) -> SweepPoint:
    values: dict[str, Any] = {"model": "m", "method": "fast-dllm", "set": "stories", "settings": {}, "nll": 1.0}
    values |= {"entropy": 3.0, "tokens": 100, "forwards": round(100 / tokens_per_forward), "positions": 900}
    return SweepPoint(arm=arm, quality=quality, draft_forwards=0, seconds=1.0, **{**values, **given})


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return outpace.load("stories-block")


def test_the_area_is_that_of_trapezia() -> None:
    assert area([point(0.5, 1.0)], most=5) == 0  # nothing was written any faster
    assert area([point(0.8, 1.0), point(0.4, 2.0)], most=5) == pytest.approx(0.6 / 4)
    assert area([point(0.8, 1.0), point(0.4, 2.0), point(0.1, 2.0)], most=5) == pytest.approx(0.6 / 4)
    assert area([point(0.6, 2.0)], most=5) == pytest.approx(0.6 / 4)  # slower than its slowest point it is no worse
    assert area([point(1.0, 1.0), point(1.0, 10.0)], most=5) == pytest.approx(1.0)
    assert area([], most=5) == 0


def test_likelihood_is_the_judges(lm: LanguageModel) -> None:
    judge = outpace.load("stories")
    results = [judge.generate(text, max_tokens=12, record="log_probs") for text in ("Once upon a time", "The dog")]
    total = -sum(sum(result.log_probs) for result in results)
    count = sum(len(result.tokens) for result in results)
    assert likelihood(judge, results) == pytest.approx(total / count, abs=0.02)
    assert likelihood(judge, [lm.generate("Once upon a time", method="mdlm", max_tokens=16)]) > 0


def test_close_means_quality_and_entropy() -> None:
    reference = point(0.5, 1.0, arm="m: confidence, fixed", method="masked-diffusion")
    kept, dull, worse = point(0.495, 2.0), point(0.5, 3.0, entropy=2.9), point(0.48, 4.0)
    assert closest([kept, dull, worse], reference) is kept
    assert closest([dull, worse], reference) is None
    others = [dataclasses.replace(reference, settings={"per_step": 2}), reference]
    assert reference_of(others, "stories", "m") is reference


def test_every_sweep_is_a_method_with_such_settings() -> None:
    for is_full in (True, False):
        sweeps = [
            *sampler_sweeps("m", is_full),
            *cache_sweeps("m", is_full),
            *lossless_sweeps("m"),
            *causal_sweeps("m"),
        ]
        for sweep in sweeps:
            assert sweep.settings
            for settings in sweep.settings:
                load_method(sweep.method).from_settings(settings)


def test_a_task_is_scored_and_counted(lm: LanguageModel, tmp_path: Path) -> None:
    examples = tuple(examples_of("copy", 2))
    item = Set("copy", tuple(example.prompt for example in examples), examples, 32)
    sweeps = [
        Sweep("stories-block: confidence, fixed", "stories-block", "masked-diffusion", ({"per_step": 1},)),
        Sweep("stories-block: threshold", "stories-block", "fast-dllm", ({"threshold": 0.5, "cache": "block"},)),
    ]
    slow, fast = measure(sweeps, [item], {"stories-block": lm}, None)
    assert 0 <= slow.quality <= 1 and slow.nll == 0
    assert fast.tokens_per_forward > slow.tokens_per_forward
    solved = [text.strip() == example.answer.strip() for text, example in zip(slow.texts, examples, strict=True)]
    assert slow.quality == sum(solved) / len(solved)
    machine = {"cpu": "test", "threads": 1}
    new_report("canvas", {}, machine, [slow.to_dict(), fast.to_dict()], tables=()).write(tmp_path / "one.json")
    known = read_report(tmp_path / "one.json").rows
    assert [SweepPoint.from_dict(entry).to_dict() for entry in known] == known
    later = dataclasses.replace(slow, quality=0.123)
    new_report("canvas", {}, machine, [later.to_dict(), fast.to_dict()], tables=()).write(tmp_path / "two.json")
    pytest.importorskip("matplotlib")
    merge([tmp_path / "one.json", tmp_path / "two.json"], tmp_path / "out")
    page = (tmp_path / "out/canvas.md").read_text()
    assert "| copy | 0.12 |" in page, "of a set the last run counts"
    assert (tmp_path / "out/stories-block.png").stat().st_size > 1000
    assert "| copy | 0.12 |" in fixed_table([later], "stories-block", ["copy"])


def test_bad_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no set 'nothing'"):
        CanvasOptions(out=tmp_path, sets=("nothing",))
    (tmp_path / "bad.json").write_text("{}")
    for name in ("bad.json", "missing.json"):
        with pytest.raises(ConfigError, match="holds no figures"):
            merge([tmp_path / name], tmp_path / "out")


@pytest.mark.parametrize("held", [0, 32])
def test_both_forwards_of_a_step_compute_the_same(held: int) -> None:
    from outpace.bench import canvas_steps

    pytest.importorskip("transformers")
    directory = Path(locate("stories-block")[0])
    lm = outpace.load("stories-block", dtype="float32")
    tokens = torch.randint(2, 8000, (1, held + 16), generator=torch.Generator().manual_seed(1))
    other = canvas_steps._transformers(directory, torch.float32)
    ours = canvas_steps._our_forward(lm, tokens, held)().logits[0]
    theirs = canvas_steps._their_forward(other, lm, tokens, held, False)()[0]
    # Shifted: what we say of a place is what the raw model says one place before it.
    assert torch.allclose(ours[1:], theirs[:-1], atol=2e-3)
    rows = step_times(lm, directory, 1, False)
    assert len(rows) == len(canvas_steps.SHAPES) and all(math.isfinite(row["ratio"]) for row in rows)
