"""The fleet's simulator against queueing theory where theory is exact, against hand-worked steps, and its command."""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

from outpace.bench.fleet import length_law, main, poisson, read_trace, summarise
from outpace.bench.fleet_check import compare, run_engine
from outpace.bench.fleet_model import FleetSettings, Job, StepTimes, expected_tokens, simulate
from outpace.engine.core import Engine
from outpace.errors import ConfigError
from outpace.schedule.cost import CostCurve

SECONDS = 1e-3
LINEAR = StepTimes([CostCurve((1, 2), (SECONDS, 2 * SECONDS))])  # a token is a millisecond, however many there are
FLAT = StepTimes([CostCurve((1, 2), (SECONDS, SECONDS))])  # a step is a millisecond
ALONE = {"rows": 1, "budget": 10**9}


def waits(jobs: list[Job]) -> tuple[float, float]:
    """The mean wait and its standard error, from means of 20 stretches (neighbours wait alike)."""
    kept = [job.begun - job.at for job in jobs[len(jobs) // 10 :]]
    size = len(kept) // 20
    means = [statistics.fmean(kept[at : at + size]) for at in range(0, size * 20, size)]
    return statistics.fmean(means), statistics.stdev(means) / 20**0.5


def served(rate: float, prompt: str, num: int, replicas: int = 1, routing: str = "random") -> list[Job]:
    """Requests that are one step each, whose seconds are those of their prompts."""
    jobs = poisson(rate, num, length_law(prompt), length_law("fixed:1"), random.Random(5))
    settings = FleetSettings(replicas=replicas, routing=routing, **ALONE)
    ended, _ = simulate(jobs, LINEAR, settings, random.Random(6))
    return ended


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_one_server_waits_as_md1_says(share: float) -> None:
    """M/D/1: Pollaczek and Khinchine's mean wait, rho * D / (2 * (1 - rho))."""
    seconds = 1000 * SECONDS
    mean, error = waits(served(share / seconds, "fixed:1000", 40_000))
    assert abs(mean - share * seconds / (2 * (1 - share))) < 4 * error
    assert error < 0.05 * mean, "the test can fail"


def test_one_server_waits_as_mm1_says() -> None:
    """M/M/1: the mean wait is rho / (mu - lambda), and P(wait > t) = rho * exp(-(mu - lambda) * t)."""
    mu, share = 1.0, 0.7
    jobs = served(share * mu, "exponential:1000", 40_000)
    mean, error = waits(jobs)
    assert abs(mean - share / (mu - share * mu)) < 4 * error and error < 0.08 * mean
    kept = [job.begun - job.at for job in jobs[4000:]]
    for after in (0.0, 1.0, 4.0):
        seen = sum(wait > after for wait in kept) / len(kept)
        assert seen == pytest.approx(share * math.exp(-(mu - share * mu) * after), abs=0.03)


def test_random_routes_make_servers_of_their_own() -> None:
    """Poisson arrivals that are split at random are Poisson: each of four servers waits as M/D/1."""
    seconds, share = 1000 * SECONDS, 0.6
    jobs = served(4 * share / seconds, "fixed:1000", 40_000, replicas=4)
    mean, error = waits(jobs)
    assert abs(mean - share * seconds / (2 * (1 - share))) < 4 * error
    least, _ = waits(served(4 * share / seconds, "fixed:1000", 40_000, replicas=4, routing="least"))
    assert least < 0.5 * mean, "who looks waits less"
    assert {job.replica for job in jobs} == {0, 1, 2, 3}


def test_steps_are_what_is_worked_out_by_hand() -> None:
    """Two rows, a budget of 10: prompts of 12 and 4, texts of 3 and 2, a third that waits for a row."""
    jobs = [Job(0.0, 12, 3), Job(0.0005, 4, 2), Job(0.001, 1, 1)]
    ended, busy = simulate(jobs, LINEAR, FleetSettings(rows=2, budget=10), random.Random(0))
    # 10 tokens of a; its last 2 and all 4 of b: both have their first; 1 + 1; a ends alone beside the whole of c.
    assert [round(job.begun, 6) for job in ended] == [0.0, 0.01, 0.018]
    assert [round(job.first, 6) for job in ended] == [0.016, 0.016, 0.02]
    assert [round(job.ended, 6) for job in ended] == [0.02, 0.018, 0.02]
    assert ended[0].between == pytest.approx(0.002) and busy == pytest.approx(1.0)


def test_a_shared_beginning_is_read_once_per_replica() -> None:
    jobs = [Job(float(n), 100, 1, n % 2, 80) for n in range(6)]
    for cache, hits in ((2, [0, 0, 80, 80, 80, 80]), (1, [0] * 6), (0, [0] * 6)):
        ended, _ = simulate(
            [Job(j.at, 100, 1, j.group, 80) for j in jobs], LINEAR, FleetSettings(cache=cache), random.Random(0)
        )
        assert [job.cached for job in ended] == hits
        assert [round(job.ended - job.at, 6) for job in ended] == [(100 - hit) / 1000 for hit in hits]


def test_prefix_routes_keep_beginnings_together() -> None:
    jobs = poisson(5.0, 2000, length_law("fixed:10"), length_law("fixed:4"), random.Random(1), groups=40, shared=90)
    found = {}
    for routing in ("random", "prefix"):
        settings = FleetSettings(replicas=4, cache=12, routing=routing)
        ended, _ = simulate(
            [Job(j.at, j.prompt, j.output, j.group, 90) for j in jobs], LINEAR, settings, random.Random(2)
        )
        found[routing] = sum(job.cached for job in ended) / sum(job.prompt for job in ended)
        if routing == "prefix":
            assert all(len({job.replica for job in ended if job.group == group}) == 1 for group in range(40))
    assert found["prefix"] > 2 * found["random"]


def test_drafting_pays_while_steps_are_free_and_never_costs_where_it_is_adaptive() -> None:
    def seconds(times: StepTimes, **more: Any) -> float:
        settings = FleetSettings(rows=4, **more)
        jobs = [Job(0.0, 1, 2001) for _ in range(4)]
        return max(job.ended for job in simulate(jobs, times, settings, random.Random(3))[0])

    assert expected_tokens(3, 0.5) == 1 + 0.5 + 0.25 + 0.125
    drafting = {"draft_len": 3, "acceptance": 0.5}
    gain = seconds(FLAT) / seconds(FLAT, **drafting)
    assert gain == pytest.approx(expected_tokens(3, 0.5), rel=0.05)
    assert seconds(LINEAR, **drafting, is_adaptive=False) > 1.5 * seconds(LINEAR)
    assert seconds(LINEAR, **drafting) == seconds(LINEAR)


def test_a_step_takes_time_beside_its_forward() -> None:
    settings = FleetSettings(rows=2, budget=10, step_s=0.1, row_s=0.01)
    ended, _ = simulate([Job(0.0, 4, 2), Job(0.0, 4, 2)], FLAT, settings, random.Random(0))
    # The first is alone when it arrives; both share the second step, and the other's last token is its own.
    assert [round(job.ended, 6) for job in ended] == [0.232, 0.343]
    assert [round(job.first, 6) for job in ended] == [0.111, 0.232]


def test_steps_between_two_curves_are_mixed_by_rows() -> None:
    one, four = CostCurve((1, 2), (1.0, 2.0), batch=1), CostCurve((1, 2), (2.0, 3.0), batch=4)
    times = StepTimes([four, one])
    assert [times(rows, tokens) for rows, tokens in ((1, 1), (1, 3), (4, 4), (4, 8), (4, 6), (9, 8))] == [
        1.0, 3.0, 2.0, 3.0, 2.5, 3.0
    ]  # fmt: skip
    assert times(2, 4) == pytest.approx(2 / 3 * 4.0 + 1 / 3 * 2.0)
    with pytest.raises(ConfigError, match="rows of its own"):
        StepTimes([one, one])


def test_the_price_follows_the_tokens() -> None:
    job = Job(0.0, 1, 100)
    job.begun, job.first, job.ended = 0.0, 0.1, 1.0
    row = summarise([job], 0.5, 2, 3.6)
    assert row["tokens_per_s"] == 100 and row["price_per_million"] == pytest.approx(2 * 3.6 / 3600 / 100 * 1e6)
    assert row["tpot_s"]["p50"] == pytest.approx(0.9 / 99) and row["ttft_s"]["p99"] == pytest.approx(0.1)


def test_an_engine_is_asked_what_is_simulated(tiny: Path) -> None:
    jobs = [Job(0.01 * n, 5 + n, 3 + n) for n in range(4)]

    async def run() -> list[Job]:
        async with Engine(str(tiny), is_compiled=False) as engine:
            seen = await run_engine(engine, jobs)
            load = await engine.load()
            assert (load.prompt_tokens, load.written_tokens) == (5 + 6 + 7 + 8, 3 + 4 + 5 + 6)
            return seen

    seen = asyncio.run(run())
    assert all(job.at <= job.first < job.ended for job in seen) and jobs[0].first < 0, "what was asked stays as it is"
    ended, _ = simulate(jobs, LINEAR, FleetSettings(), random.Random(0))
    figures = {row["figure"]: row for row in compare(summarise(seen, 0, 1, 0), summarise(ended, 0, 1, 0))}
    assert figures["tokens/s"]["seen"] == pytest.approx(18 / (max(job.ended for job in seen) - jobs[0].at))
    assert all(row["ratio"] == pytest.approx(row["simulated"] / row["seen"]) for row in figures.values())


@pytest.fixture
def curve(tmp_path: Path) -> str:
    fields = {"sizes": [1, 2, 8], "seconds": [0.004, 0.0041, 0.006], "context": 256, "batch": 1}
    (tmp_path / "curve.json").write_text(json.dumps(fields))
    return str(tmp_path / "curve.json")


def test_the_command(curve: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    common = ["--curve", curve, "--requests", "60", "--json", str(tmp_path / "f.json")]
    assert (
        main([*common, "--replicas", "1,3", "--groups", "4", "--acceptance", "0.5", "--plot", str(tmp_path / "f.png")])
        == 0
    )
    first = json.loads((tmp_path / "f.json").read_text())
    assert [row["replicas"] for row in first["rows"]] == [1, 3] and "| 3 |" in capsys.readouterr().out
    assert first["rows"][0]["ttft_s"]["p99"] >= first["rows"][1]["ttft_s"]["p99"]
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "trace").write_text(
        '{"at": 1, "prompt": 9, "output": 3}\n{"at": 0, "prompt": 4, "output": 1, "group": 2}\n'
    )
    assert [job.at for job in read_trace(tmp_path / "trace")] == [0, 1]
    assert main([*common, "--arrivals", f"trace:{tmp_path / 'trace'}", "--replicas", "1", "--draft", "off"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--curve", "nowhere"], "cannot be read"),
        (["--curve", __file__], "holds no cost curve"),
        (["--arrivals", "poisson:0"], "no arrivals"),
        (["--arrivals", "poisson:nan"], "no arrivals"),
        (["--arrivals", "trace:nowhere"], "cannot be read"),
        (["--arrivals", f"trace:{__file__}"], "is no request"),
        (["--prompt", "fixed:0"], "no law of lengths"),
        (["--output", "uniform:3"], "no law of lengths"),
        (["--rows", "0"], "rows is 0"),
        (["--acceptance", "1"], "no probability"),
        (["--requests", "0"], "no request"),
    ],
)
def test_mistakes(curve: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["--curve", curve, *arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 2
