"""The table of when diffusion pays: points in words, figures, and files that are read again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from outpace.bench.canvas import SweepPoint
from outpace.bench.diffusion import main, read_point, tables
from outpace.errors import ConfigError


def test_a_point_is_read_from_words() -> None:
    found = read_point("stories-block:fast-dllm:threshold=0.7,cache=block,block=8")
    assert (found.model, found.method) == ("stories-block", "fast-dllm")
    assert found.settings == ({"threshold": 0.7, "cache": "block", "block": 8},)


@pytest.mark.parametrize("words", ["stories-block", ":mdlm", "stories-block:", "m:n:threshold"])
def test_words_that_are_no_point_are_refused(words: str) -> None:
    with pytest.raises(ConfigError, match="is no"):
        read_point(words)


def test_points_are_measured_kept_and_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--num", "1", "--max-tokens", "16", "--json"]
    assert main(["stories-block:masked-diffusion:per_step=4", *given, str(tmp_path / "one.json")]) == 0
    assert "per_step=4" in capsys.readouterr().out
    rows = json.loads((tmp_path / "one.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["masked-diffusion", "autoregressive", "auto"]
    plain, auto = rows[1:]
    assert plain["quality"] == pytest.approx(math.exp(-plain["nll"]))
    assert (plain["nll"], plain["tokens"]) == (auto["nll"], auto["tokens"])  # auto writes what plain decoding writes
    assert plain["nll"] <= rows[0]["nll"]
    again = [*given, str(tmp_path / "two.json"), "--add", str(tmp_path / "one.json")]
    assert main(["stories-block:masked-diffusion", *again]) == 0
    assert len(json.loads((tmp_path / "two.json").read_text())["rows"]) == 6


def test_the_fastest_points_come_first() -> None:
    shared = {"method": "m", "set": "s", "settings": {}, "quality": 1.0, "nll": 0.0, "entropy": 0.0, "tokens": 10}
    shared |= {"forwards": 5, "positions": 5, "draft_forwards": 0}
    points = [SweepPoint(arm=name, model=name, seconds=s, **shared) for name, s in (("slow", 2.0), ("fast", 1.0))]
    text = tables(points)[0].markdown()
    assert text.index("fast") < text.index("slow")
    assert "100.00" in text  # milliseconds per token of the fast one
