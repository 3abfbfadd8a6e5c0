"""Traces: what is written is what happened, a page holds it all, and broken files are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import outpace
from outpace.cli import main
from outpace.errors import ConfigError
from outpace.trace import Recorder, read_trace, render
from outpace.trace.page import summarise


def _step(path: list[int], parent: list[int], origin: str) -> dict[str, object]:
    row = {"row": 0, "tokens": [5] * len(path), "path": path, "origin": origin}
    return {
        "step": 0,
        "seconds": {"draft": 1.0, "score": 2.0},
        "rows": [{**row, "draft": {"tokens": parent, "parent": parent}}],
    }


def test_summary_by_hand() -> None:
    steps = [
        _step([0, 2, -1], [-1, -1, 0, 2], "a"),  # two kept; a node of depth 3 was there and failed
        _step([-1], [-1], "a"),  # depth 1 failed
        _step([-1], [], "plain"),
    ]
    told = summarise(steps)
    assert told["depths"] == [
        {"depth": 1, "tried": 2, "kept": 1},
        {"depth": 2, "tried": 1, "kept": 1},
        {"depth": 3, "tried": 1, "kept": 0},
    ]
    assert told["phases"] == {"draft": 3.0, "score": 6.0}
    assert told["drafters"]["a"] == {"steps": 2, "drafts": 5, "accepted": 2, "tokens": 4, "seconds": 6.0}


def test_a_trace_holds_the_whole_text(tmp_path: Path) -> None:
    lm = outpace.load("stories")
    assert lm.tokenizer is not None
    recorder = Recorder(tmp_path / "t.jsonl", lm.tokenizer.decode)
    recorder.begin("stories", "prompt-lookup", {}, ["a", "b"])
    results = lm.generate(
        ["The cat sat on the mat. " * 4, "Once upon a time"], method="prompt-lookup", max_tokens=24, watch=recorder
    )
    recorder.close(results)
    head, steps, ends = read_trace(tmp_path / "t.jsonl")
    assert head["method"] == "prompt-lookup" and [end["finish_reason"] for end in ends] == ["length", "length"]
    for number, result in enumerate(results):
        mine = [row for step in steps for row in step["rows"] if row["row"] == number]
        assert [token for row in mine for token in row["tokens"]] == result.tokens
        assert [source for row in mine for source in row["sources"]] == result.sources
        assert sum(node >= 0 for row in mine for node in row["path"]) == result.usage.num_accepted
        for row in mine:  # an accepted node is the token written there
            assert all(
                row["draft"]["tokens"][n] == t for n, t in zip(row["path"], row["tokens"], strict=True) if n >= 0
            )
    page = render(head, steps, ends)
    assert "http-equiv" not in page and "src=" not in page and "<link" not in page  # needs nothing else


def test_a_text_cannot_end_the_script(tmp_path: Path) -> None:
    head = {"kind": "outpace-trace", "version": 1, "model": "m", "method": "x", "prompts": ["</script><b>"]}
    page = render(head, [], [])
    assert page.count("</script>") == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "t.jsonl", tmp_path / "t.html"
    arguments = [
        "generate",
        "The cat sat. The cat",
        "--method",
        "prompt-lookup",
        "--max-tokens",
        "12",
        "--trace",
        str(file),
    ]
    assert main(arguments) == 0
    assert main(["trace", str(file), "--html", str(page)]) == 0
    assert "prompt-lookup" in capsys.readouterr().out and page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["trace", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] > 0


def test_files_that_are_no_trace(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text(
        '{"kind": "outpace-trace", "version": 1}\n{"step": 0, "seconds": {}, "rows": []}\n{"st', encoding="utf-8"
    )
    assert len(read_trace(broken)[1]) == 1  # what is whole can be read
    other = tmp_path / "other"
    other.write_text("[1, 2]\n", encoding="utf-8")
    for file, message in ((other, "is no trace"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(ConfigError, match=message):
            read_trace(file)
    with pytest.raises(ConfigError, match="cannot be written"):
        Recorder(tmp_path / "no" / "folder")
