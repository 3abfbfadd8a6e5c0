"""The whole benchmark on tiny random models."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from outpace.bench import BenchOptions, run
from outpace.bench.arms import Request, Sample, make_method
from outpace.bench.inflate import inflate
from outpace.bench.prompts import Prompt
from outpace.bench.rows import Record, make_rows
from outpace.bench.speed import measure
from outpace.errors import ConfigError


def options(model: Path, **changes: Any) -> BenchOptions:
    base = BenchOptions(
        model=str(model),
        methods=("autoregressive", "prompt-lookup:draft_len=4"),
        prompts=("stories", "copy"),
        paths=("eager",),
        num_prompts=1,
        repeats=2,
        max_tokens=12,
        with_memory=False,
    )
    return dataclasses.replace(base, **changes)


def test_the_document(tiny: Path, tmp_path: Path) -> None:
    files = {"json": tmp_path / "out" / "speed.json", "plot": tmp_path / "speed.png", "markdown": tmp_path / "speed.md"}
    told: list[str] = []
    report = run(options(tiny, **files), told.append)
    document = json.loads(files["json"].read_text())
    assert document == json.loads(json.dumps(report.to_dict()))
    assert document["schema_version"] == 1
    assert document["kind"] == "speed"
    assert document["model"]["name"] == "tiny"
    assert str(tiny.parent) not in files["json"].read_text()  # nobody's paths
    assert {"machine", "options", "arms", "skipped", "notes", "rows", "samples"} <= set(document)
    # 2 sets x 1 prompt x 2 temperatures x 2 repetitions x 2 arms
    assert len(document["samples"]) == 16
    names = {row["arm"] for row in document["rows"]}
    assert names == {"autoregressive (eager)", "prompt-lookup:draft_len=4 (eager)"}
    for row in document["rows"]:
        assert row["tokens_per_s"] > 0
        assert row["exactness"]["of"] == 1
        assert sum(row["time_shares"].values()) == pytest.approx(1)
        assert row["ratio_plain"]["low"] <= row["ratio_plain"]["median"] <= row["ratio_plain"]["high"]
    plain = [row for row in document["rows"] if row["method"] == "autoregressive"]
    assert all(row["tokens_per_forward"] == 1 and row["positions_per_token"] == 1 for row in plain)
    first = [sample["sample"] for sample in document["samples"] if sample["repeat"] == 0]
    assert all(sample["num_decoded"] == len(sample["tokens"]) for sample in first)
    assert all(("tokens" in sample["sample"]) == (sample["repeat"] == 0) for sample in document["samples"])
    text = files["markdown"].read_text()
    assert "x plain [95%]" in text and "![speed](speed.png)" in text
    assert files["plot"].read_bytes()[:4] == b"\x89PNG"
    assert told


def test_peers(tiny: Path, tiny_draft: Path) -> None:
    wanted = options(
        tiny, methods=("draft-model",), peers=("hf",), prompts=("stories",), draft=str(tiny_draft), dtype="float32"
    )
    report = run(wanted)
    greedy = {row["arm"]: row for row in report.rows if row["temperature"] == 0}
    assert set(greedy) == {
        "autoregressive (eager)",
        "draft-model (eager)",
        "hf:plain",
        "hf:prompt-lookup",
        "hf:assisted",
    }
    for name in ("hf:prompt-lookup", "hf:assisted"):
        assert greedy[name]["exactness"]["reference"] == "hf:plain"
        assert greedy[name]["exactness"]["equal"] == 1
    assert greedy["draft-model (eager)"]["counterpart"] == "hf:assisted"
    assert greedy["draft-model (eager)"]["ratio_counterpart"]["pairs"] == 2
    # Same weights, same prompt, greedy, float32: the same text, counted alike.
    texts = {
        sample["arm"]: sample["sample"]["tokens"]
        for sample in report.to_dict()["samples"]
        if sample["temperature"] == 0 and sample["repeat"] == 0
    }
    assert len({tuple(text) for text in texts.values()}) == 1
    sampled = [row for row in report.rows if row["temperature"] > 0 and row["path"] == "hf"]
    assert all(row["exactness"].get("note") or row["arm"] == "hf:plain" for row in sampled)


def test_no_part_of_an_inflated_target_drafts(tiny: Path, tmp_path: Path) -> None:
    larger = inflate(tiny, tmp_path / "larger", 600_000)
    report = run(options(larger, methods=("layer-skip", "jacobi"), prompts=("stories",), temperatures=(0.0,)))
    assert [item["name"] for item in report.to_dict()["skipped"]] == ["layer-skip (eager)"]
    assert "inflated" in report.to_dict()["skipped"][0]["reason"]
    assert {row["method"] for row in report.rows} == {"autoregressive", "jacobi"}
    assert "INFLATED from tiny" in report.markdown()
    assert report.to_dict()["model"]["inflated"]["from"] == "tiny"


def test_misfits_are_left_out_and_mistakes_are_not(tiny: Path) -> None:
    report = run(options(tiny, methods=("masked-diffusion",), prompts=("stories",), temperatures=(0.0,)))
    assert report.to_dict()["skipped"][0]["name"] == "masked-diffusion (eager)"
    with pytest.raises(ConfigError):
        run(options(tiny, methods=("prompt-lockup",)))
    with pytest.raises(ConfigError):
        make_method("prompt-lookup:draft_len", options(tiny))


class StubArm:
    """Notes who was asked when; slow ones are slower by a known factor."""

    counterpart, precision = "", ""

    def __init__(self, name: str, seconds: float, log: list[str], tokens: Sequence[int] = range(10)) -> None:
        self.name, self.method, self.path, self.baseline = name, name, "eager", "autoregressive"
        self.seconds, self.log, self.tokens = seconds, log, list(tokens)

    def run(self, task: Request) -> Sample:
        self.log.append(self.name)
        return Sample(list(self.tokens), 0.0, self.seconds, len(self.tokens), "length", len(self.tokens))

    def memory_job(self) -> dict[str, Any]:
        return {}


def test_arms_alternate_and_rotate() -> None:
    log: list[str] = []
    arms = [StubArm("autoregressive", 2.0, log), StubArm("b", 1.0, log), StubArm("c", 4.0, log)]
    tasks = {Prompt("s", str(i), ""): [1, 2] for i in range(3)}
    wanted = BenchOptions(temperatures=(0.0,), repeats=2)
    records, is_cut = measure(arms, tasks, wanted)
    assert not is_cut
    timed = log[len(arms) :]  # after the warm-up
    rounds = [timed[i : i + 3] for i in range(0, len(timed), 3)]
    assert all(set(group) == {"autoregressive", "b", "c"} for group in rounds)
    assert {group[0] for group in rounds} == {"autoregressive", "b", "c"}
    rows = {row["arm"]: row for row in make_rows(records, arms, tasks, wanted, ())}
    assert rows["b"]["ratio_plain"]["median"] == 2.0
    assert rows["c"]["ratio_plain"]["median"] == 0.5
    assert rows["b"]["ratio_plain"]["pairs"] == 6


def test_a_time_limit_keeps_whole_rounds() -> None:
    arms = [StubArm("autoregressive", 1.0, []), StubArm("b", 1.0, [])]
    tasks = {Prompt("s", str(i), ""): [1, 2] for i in range(3)}
    records, is_cut = measure(arms, tasks, BenchOptions(repeats=5, time_limit_s=1e-9))
    assert is_cut
    assert [record.arm for record in records] == ["autoregressive", "b"]


def test_loops_are_left_out_of_a_second_ratio_and_flips_told() -> None:
    tasks = {Prompt("s", "loop", ""): [1], Prompt("s", "text", ""): [1]}
    plain, other = StubArm("autoregressive", 1.0, []), StubArm("b", 1.0, [])
    texts = {"loop": [1, 2] * 20, "text": list(range(40))}
    changed = {"loop": [1, 2] * 20, "text": [*range(30), 99, *range(31, 40)]}
    seconds = {("b", "loop"): 0.125, ("b", "text"): 0.5}
    records = [
        Record(
            arm.name, "s", name, 0.0, 0, Sample(found[name], 0.0, seconds.get((arm.name, name), 1), 40, "length", 40)
        )
        for arm, found in ((plain, texts), (other, changed))
        for name in ("loop", "text")
    ]
    rows = make_rows(records, [plain, other], tasks, BenchOptions(temperatures=(0.0,)), ())
    assert [(row["arm"], row["prompts"], row["repetitive_prompts"]) for row in rows] == [
        ("autoregressive", 2, 1),
        ("b", 2, 1),
    ]
    # Eight times as fast on the loop, twice on the text: the median of both, and of the text alone.
    assert rows[1]["ratio_plain"]["median"] == 5
    assert rows[1]["ratio_plain_calm"]["median"] == 2
    assert rows[1]["exactness"] == {
        "reference": "autoregressive",
        "equal": 1,
        "of": 2,
        "flips": [{"prompt": "text", "at": 30, "margin": None}],
    }
    assert rows[0]["repeated_8gram_share"] == 0.5


def test_the_fastest_peers_are_named_and_other_precisions_are_no_match() -> None:
    class Peer(StubArm):
        def __init__(self, name: str, mode: str, seconds: float, precision: str = "") -> None:
            super().__init__(name, seconds, [])
            self.method, self.path, self.precision, self.baseline = mode, "engine", precision, "engine:plain"

    arms = [
        StubArm("autoregressive", 1.0, []),
        Peer("slow:plain", "plain", 4.0),
        Peer("engine:plain", "plain", 2.0),
        Peer("engine:prompt-lookup", "prompt-lookup", 0.5),
        Peer("engine:plain int4", "plain", 0.1, "int4"),
    ]
    tasks = {Prompt("s", str(i), ""): [1, 2] for i in range(2)}
    wanted = BenchOptions(temperatures=(0.0,), repeats=1)
    rows = {row["arm"]: row for row in make_rows(measure(arms, tasks, wanted)[0], arms, tasks, wanted, ())}
    ours = rows["autoregressive"]
    assert (ours["best_plain"], ours["best_peer"]) == ("engine:plain", "engine:prompt-lookup")
    assert (ours["ratio_best_plain"]["median"], ours["ratio_best_peer"]["median"]) == (2.0, 0.5)
    assert rows["engine:plain int4"]["exactness"]["note"] == "other precision, other text"
    assert rows["engine:prompt-lookup"]["exactness"]["equal"] == 2
