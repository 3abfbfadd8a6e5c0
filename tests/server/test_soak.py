"""The soak and the load in short: a good server passes, a wrong answer is caught, a lost one too."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from scripted import Scripted

import outpace
from outpace.bench.serving.__main__ import main as measure
from outpace.bench.serving.load import percentile, run_load
from outpace.bench.serving.probes import read_metrics
from outpace.bench.serving.servers import Server, peer_versions, served_name
from outpace.bench.serving.traffic import make_traffic
from outpace.bench.soak import Question, Soak, main, make_questions, soak
from outpace.engine.face import Busy, Load
from outpace.errors import ConfigError, OutpaceError


def test_nothing_is_lost_or_crossed(url: str, stories: outpace.LanguageModel) -> None:
    """Also with clients that leave, give up, send halves and nonsense; the whole answers are the library's."""
    questions = make_questions(stories, 15)
    found = soak(url, "stories", questions, requests=40, clients=6, seed=6)
    assert found.problems == [] and found.num_wrong == 0 and found.done == 40
    kinds = {name.split(":")[0] for name in found.counts}
    assert kinds == {"whole", "stream", "leave", "give up", "bad", "half"}
    assert found.counts["whole: equal"] == found.counts["stream: equal"] == 12 and found.counts["leave: equal"] == 5
    more = soak(url, "stories", questions, requests=44, clients=2, so_far=found)
    assert more.done == 44 and sum(more.counts.values()) == 44


def test_wrong_answers_are_caught(url: str, stories: outpace.LanguageModel) -> None:
    """Answers that belong to another question are crossed, others differ, refused ones are lost."""
    long = [one for one in make_questions(stories, 15) if len(one.tokens) > 6 and "stop" not in one.body]
    first, second = long[0], next(one for one in long if one.tokens[:4] != long[0].tokens[:4])
    swapped = [replace(first, body=second.body), replace(second, body=first.body)]
    assert soak(url, "stories", swapped, requests=8, clients=2).counts["crossed"]
    other = [replace(first, tokens=[*first.tokens[:-1], first.tokens[-1] ^ 1])]
    assert soak(url, "stories", other, requests=8, clients=2).counts["differing"]
    assert soak(url, "no-such-model", [first], requests=8, clients=2).counts["lost"]


def test_a_server_that_breaks_loses(serve: Callable[..., str], stories: outpace.LanguageModel) -> None:
    broken = serve(Scripted(refuses=ValueError("broken")))
    assert soak(broken, "scripted", make_questions(stories, 3), requests=8, clients=2).counts["lost"]


def test_what_runs_on_is_seen(serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that holds two requests for good."""
    monkeypatch.setattr("outpace.bench.soak._PATIENCE", 2)
    face = Scripted(refuses=Busy("Full."))
    face.load = _two_running  # type: ignore[method-assign]
    found = soak(serve(face), "scripted", [Question({"prompt": [1]}, [], "")], requests=1, clients=1)
    assert found.counts["stuck"] == 2 and found.num_wrong == 2


async def _two_running() -> Load:
    return Load(running=2)


def test_memory_that_grows_is_seen() -> None:
    flat = Soak(memory=[(at, 1000 + at % 3, 0.0) for at in range(40)])
    grown = Soak(memory=[(at, 1000 + 10 * at, 0.0) for at in range(40)])
    assert abs(flat.growth()) < 0.01 < 0.15 < grown.growth()


def test_a_soak_goes_on(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "soak.json"
    given = ["--clients", "2", "--questions", "4", "--url", url, "--json", str(file)]
    assert main(["--requests", "6", *given]) == 0
    assert main(["--requests", "9", "--resume", *given]) == 0
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["done"] == 9 and sum(row["requests"] for row in document["rows"]) == 9
    assert "0 lost, crossed, differing" in capsys.readouterr().out
    file.write_text('{"schema_version": 1, "kind": "busy", "rows": []}', encoding="utf-8")
    assert main(["--requests", "9", "--resume", *given]) != 0
    assert "is not of a soak" in capsys.readouterr().err


def test_traffic_is_mixed_and_comes_again(stories: outpace.LanguageModel) -> None:
    bodies = make_traffic(["code", "text", "open"], stories.tokenizer, 24, 32)
    assert bodies == make_traffic(["code", "text", "open"], stories.tokenizer, 24, 32)
    assert bodies != make_traffic(["code", "text", "open"], stories.tokenizer, 24, 32, seed=1)
    assert Counter(body["temperature"] > 0 for body in bodies) == {True: 12, False: 12}
    assert len({body["seed"] for body in bodies}) == 24 and {body["max_tokens"] for body in bodies} == {16, 32, 48}
    assert len({body["prompt"] for body in bodies}) == 24
    with pytest.raises(ConfigError, match="no-such-set"):
        make_traffic(["no-such-set"], None, 1, 1)


def test_every_part_of_a_server_is_measured(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUTPACE_BENCH_LOCK", str(tmp_path / "lock"))
    files = {"json": tmp_path / "out.json", "markdown": tmp_path / "out.md", "plot": tmp_path / "out.svg"}
    asked = ["--clients", "2", "--rounds", "1", "--requests", "2", "--max-tokens", "8", "--mix", "stories"]
    told = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    assert measure([*asked, "--url", url, *told]) == 0, capsys.readouterr().err
    document = json.loads(files["json"].read_text(encoding="utf-8"))
    off, auto = document["rows"]
    assert off["tokens_per_s_ratio"] is None and auto["tokens_per_s_ratio"]["median"] > 0
    assert all(row["equal"] == row["compared"] > 0 for row in (auto, *document["overhead"]))
    assert auto["gap_p99_ms"] >= auto["gap_p50_ms"] > 0 and auto["token_ms"] > 0
    assert all(row["prompts"] >= 8 for row in document["arrivals"])
    assert document["prefix"]["cached_tokens"] >= 0.9 * document["prefix"]["prefix_tokens"]
    assert document["memory"]["running"] > 1 and document["memory"]["ratio"] < 1.2
    assert files["plot"].stat().st_size > 1000 and not document["skipped"]
    assert peer_versions(["transformers", "transformers:batching"]).keys() == {"transformers"}
    assert "![speed](out.svg)" in files["markdown"].read_text(encoding="utf-8")
    assert "Between pieces while long prompts arrive" in capsys.readouterr().out


def test_a_server_that_does_not_start_is_named() -> None:
    with pytest.raises(OutpaceError, match=r"peer does not serve: it ended with status 3: no such file"):
        Server("peer", [sys.executable, "-c", "print('loading'); print('no such file'); raise SystemExit(3)"], "model")
    with pytest.raises(OutpaceError, match="cannot be started"):
        Server("peer", ["no-such-command"], "model")


def test_a_model_goes_by_the_servers_name(url: str) -> None:
    assert served_name(url, "/somewhere/stories") == served_name(url, "stories.gguf") == "stories"
    with pytest.raises(OutpaceError, match=r"serves no other.*"):
        served_name(url, "other")


def test_a_refused_request_ends_the_measurement(url: str) -> None:
    with pytest.raises(OutpaceError, match=r"answered 404: .*no-such-model"):
        run_load(url, "no-such-model", [{"prompt": "a", "max_tokens": 1}], 1)
    with pytest.raises(ConfigError, match="no address"):
        run_load("ftp://127.0.0.1", "stories", [{"prompt": "a"}], 1)


def test_numbers() -> None:
    assert percentile([4.0, 1.0, float("nan"), 3.0, 2.0], 0.5) == 2.0 and percentile([1.0, 2.0], 0.99) == 2.0
    page = '# HELP a b\na_total{x="1"} 2\na_total{x="2"} 3.5\nb 1e3\n'
    assert read_metrics(page) == {"a_total": 5.5, "b": 1000.0}
