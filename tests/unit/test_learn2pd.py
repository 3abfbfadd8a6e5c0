"""The learned filter: its features and scores by hand, off = threshold decoding, and training finds a known rule."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from outpace.canvas.reading import Reading
from outpace.canvas.row import Canvas, CanvasRow
from outpace.canvas.rules.filtered import FEATURES, PlaceFilter, features, read_filter
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.diffusion.fast_dllm import FastDllm
from outpace.methods.diffusion.learn2pd import Learn2Pd
from outpace.sampling import Sampler, Sampling
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, make_rows, write
from outpace.train.filter import Examples, fit
from outpace.train.filter import main as filter_main

WARM = Sampling(temperature=0.8)


def stored(path: Path, vocab_size: int, **changes: object) -> str:
    source = np.random.default_rng(1)
    held = {"features": FEATURES, "vocab_size": vocab_size}
    held |= {"hidden": source.normal(size=(4, len(FEATURES) + 1)).tolist(), "out": source.normal(size=5).tolist()}
    path.write_text(json.dumps(held | changes), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("settings", [Sampling(), WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("threshold", [0.3, 1.0])
def test_without_a_filter_it_is_threshold_decoding(settings: Sampling, threshold: float) -> None:
    target = ToyModel(attention="full")
    ours = write(Learn2Pd(threshold=threshold, block=8), settings, make_rows(), target=target)
    plain = write(FastDllm(threshold=threshold, block=8, cache="none"), settings, make_rows(), target=target)
    assert [row.written for row in ours] == [row.written for row in plain]
    assert [row.usage.num_steps for row in ours] == [row.usage.num_steps for row in plain]


def test_a_filter_decides_and_rows_are_alone(tmp_path: Path) -> None:
    target = ToyModel(attention="full")
    path = stored(tmp_path / "filter.json", target.capabilities.vocab_size)
    steps = []
    for threshold in (0.2, 1.0):
        method = Learn2Pd(threshold=threshold, block=8, filter=path)
        together = write(method, WARM, make_rows(), target=target)
        steps.append(sum(row.usage.num_steps for row in together))
        for index in range(len(PROMPTS)):
            assert write(method, WARM, [make_rows()[index]], target=target)[0].written == together[index].written
    assert steps[0] < steps[1]


def test_features_and_scores_by_hand() -> None:
    laws = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.1, 0.9, 0.0, 0.0]], dtype=torch.float64)
    row = CanvasRow.begin([2, 3], [-1, 2, -1, 3], Canvas(1), ())
    row = CanvasRow(row.tokens, row.given, row.log_probs, 2, 2, 6)
    reading = Reading(np.array([2, 4]), np.array([0, 1]), laws.log(), Sampler(Sampling(), [1]), 0)
    wide, sharp = 1.5 * math.log(2), -0.1 * math.log(0.1) - 0.9 * math.log(0.9)
    wanted = [
        [0.5, -math.log2(0.5 + 2**-16) / 16, wide / 4, 0.25, 1.0, 1.0, 0.5],
        [0.9, -math.log2(0.1 + 2**-16) / 16, sharp / 4, 0.8, 1.0, 1.0, 0.5],
    ]
    found = features(reading, row)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    source = np.random.default_rng(2)
    learned = PlaceFilter(source.normal(size=(3, len(FEATURES) + 1)), source.normal(size=4), 4)
    for line, score in zip(wanted, learned.score(np.array(wanted)), strict=True):
        inner = [math.tanh(sum(a * b for a, b in zip(unit, [*line, 1.0], strict=True))) for unit in learned.hidden]
        total = sum(a * b for a, b in zip(learned.out, [*inner, 1.0], strict=True))
        assert score == pytest.approx(1 / (1 + math.exp(-total)))


def test_distances_reach_over_open_places() -> None:
    row = CanvasRow.begin([2], [-1, -1, -1, 3], Canvas(1), ())
    row = CanvasRow(row.tokens, row.given, row.log_probs, 1, 1, 5)
    laws = torch.full((3, 4), 0.25, dtype=torch.float64).log()
    reading = Reading(np.array([1, 2, 3]), np.array([0, 0, 0]), laws, Sampler(Sampling(), [1]), 0)
    found = features(reading, row)
    np.testing.assert_allclose(found[:, 4], [1, 1 / 2, 1 / 3])
    np.testing.assert_allclose(found[:, 5], [1 / 3, 1 / 2, 1])


def test_training_finds_a_rule_that_is_there() -> None:
    source = np.random.default_rng(3)
    known = source.uniform(size=(400, len(FEATURES)))
    right = (known[:, 4] > 0.5).astype(np.float64)  # only the left neighbour matters
    learned = fit(Examples(known, right), 7, steps=200)
    fresh = source.uniform(size=(200, len(FEATURES)))
    assert ((learned.score(fresh) > 0.5) == (fresh[:, 4] > 0.5)).mean() > 0.9
    assert learned.vocab_size == 7


def test_answers_to_tasks_are_examples_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "stories-block",
        "--texts",
        "2",
        "--max-tokens",
        "8",
        "--temperature",
        "0",
        "--out",
        str(tmp_path / "f.json"),
    ]
    assert filter_main([*asked, "--tasks", "copy,insert"]) == 0
    assert "of them right" in capsys.readouterr().out
    assert read_filter(str(tmp_path / "f.json")).vocab_size == 8192
    assert filter_main([*asked, "--texts", "-3", "--tasks", "copy"]) == 2
    assert filter_main([*asked, "--tasks", "chess"]) == 2
    assert "no task 'chess'" in capsys.readouterr().err


def test_bad_settings_and_bad_files(tmp_path: Path) -> None:
    for threshold in (0.0, 1.5, -1.0):
        with pytest.raises(ConfigError):
            Learn2Pd(threshold=threshold)
    target = ToyModel(attention="full")
    with pytest.raises(CapabilityError, match="trained with 99 tokens"):
        write(Learn2Pd(filter=stored(tmp_path / "a.json", 99)), WARM, make_rows(), target=target)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_filter(str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match="other features"):
        read_filter(stored(tmp_path / "b.json", 9, features=["confidence"]))
    with pytest.raises(ConfigError, match="none"):
        read_filter(stored(tmp_path / "c.json", 9, out=[math.nan] * 5))
    (tmp_path / "d.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match="no file of a filter"):
        read_filter(str(tmp_path / "d.json"))
