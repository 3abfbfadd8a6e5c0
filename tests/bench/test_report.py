"""The one schema: what earlier versions wrote is still read and shown as it was; new documents hold nobody's paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outpace.bench.report import Table, new_report, read_report
from outpace.errors import ConfigError

RESULTS = Path(__file__).parents[2] / "docs/results"
STORED = sorted(RESULTS.rglob("*.json"))


@pytest.mark.parametrize("file", STORED, ids=lambda file: file.stem)
def test_a_stored_measurement_is_read(file: Path) -> None:
    report = read_report(file)
    kinds = (
        "speed",
        "catalogue",
        "growth",
        "micro",
        "canvas",
        "canvas-fewer",
        "canvas-speed",
        "diffusion",
        "any-order",
        "serving",
        "soak",
        "translation",
        "translation-curve",
        "scarce",
        "reversal",
        "searching",
        "shared-prompt",
    )
    assert report.rows and report.document["kind"] in kinds


@pytest.mark.parametrize("file", [file for file in STORED if file.with_suffix(".md").exists()], ids=lambda f: f.stem)
def test_its_tables_are_those_that_were_written_with_it(file: Path) -> None:
    report = read_report(file)
    if report.document["kind"] in ("canvas", "canvas-speed"):  # its page is a text with tables of its own
        return
    # One page was given a remark by hand, which its file does not hold.
    text = file.with_suffix(".md").read_text(encoding="utf-8").replace(", looping text", "")
    shown = [line for line in report.markdown().splitlines() if line.startswith("|")]
    stored = [line for line in text.splitlines() if line[:1] == "|"]
    assert shown and shown == stored


def test_a_document_comes_back_and_names_no_folder(tmp_path: Path) -> None:
    table = Table("Title", ("arm", "ms"), [("a", "1")])
    asked = {"model": str(tmp_path / "model"), "prompts": [str(tmp_path / "own.jsonl")], "json": tmp_path, "repeats": 3}
    report = new_report("test", asked, {"cpu": "x"}, [{"ms": 1.0}], tables=[table], notes=["", "Said."], extra=1)
    report.write(tmp_path / "out.json")
    again = read_report(tmp_path / "out.json")
    assert again == report and str(tmp_path) not in (tmp_path / "out.json").read_text()
    assert again.document["options"] == {"model": "model", "prompts": ["own.jsonl"], "repeats": 3}
    assert (again.document["notes"], again.document["extra"]) == (["Said."], 1)
    (shown,) = again.tables()
    assert shown.markdown() == "**Title**\n\n| arm | ms |\n|---|--:|\n| a | 1 |"


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"schema_version": 99, "rows": []})])
def test_what_is_no_measurement_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match="holds no figures"):
        read_report(tmp_path / "x.json")
