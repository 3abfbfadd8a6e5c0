"""The taxonomy maps to modules that exist, its page is fresh, and its checks fail on what they should."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

from outpace.methods.registry import built_in_names, load_method
from outpace.papers import titles

ROOT = Path(__file__).parents[2]


def _script() -> Any:
    import sys

    spec = importlib.util.spec_from_file_location("taxonomy", ROOT / "docs/taxonomy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["taxonomy"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_line_has_a_module_that_imports_or_a_reason() -> None:
    script = _script()
    assert script.faults(script.read()) == []


def test_the_page_is_fresh() -> None:
    script = _script()
    lines, lists = script.read(), {survey: script.read_list(survey) for survey in script.LISTS}
    assert (ROOT / "docs/taxonomy.md").read_text(encoding="utf-8") == script.render(lines)
    assert (ROOT / "docs/surveys.md").read_text(encoding="utf-8") == script.render_lists(lines, lists)


def test_every_title_of_the_surveys_lists_has_its_place() -> None:
    script = _script()
    lines = script.read()
    for survey in script.LISTS:
        assert script.list_faults(survey, script.read_list(survey), lines, titles()) == []
    # What the page of the taxonomy says of 60: every title has a line.
    assert all(paper.method != "-" for paper in script.read_list("60"))


def test_the_checks_of_lists_can_fail(tmp_path: Path) -> None:
    script = _script()
    known, lines = (
        {1: "A Title", 2: "Another"},
        [script.Line("1", "a", "trees", "", "-", "no"), script.Line("-", "b", "trees", "", "-", "no")],
    )
    good = script.Listed("x", "2024", "-", "A title", "1", "a")
    assert script.list_faults("9", [good], lines, known) == []
    assert script.list_faults("9", script.read_list("9", tmp_path), lines, known) == ["Survey 9: no list."]
    bad = [
        replace(good, title="A titel"),
        replace(good, title="Another"),
        replace(good, title="New", number="-", method="c"),
        replace(good, category="y", method="b"),
        replace(good, category="", title="Untold", number="-"),
        good,
        good,
    ]
    assert script.list_faults("9", bad, lines, known) == [
        "Survey 9, A titel: its number is -, not 1.",
        "Survey 9, Another: its number is 2, not 1.",
        "Survey 9, New: no line c.",
        "Survey 9, A title: system 1 has another line than b.",
        "Survey 9: a line without category or title.",
        "Survey 9, atitle: twice in x.",
    ]


def test_every_numbered_method_of_ours_is_on_it() -> None:
    lines = {line.number: line for line in _script().read()}
    modules: dict[str, list[str]] = {}  # a paper may have several methods
    for kind in map(load_method, built_in_names()):
        if kind.paper is not None and kind.paper.number and str(kind.paper.number) in lines:
            modules.setdefault(str(kind.paper.number), []).append(kind.__module__)
    assert modules
    for number, found in modules.items():
        assert lines[number].module in found, number


def test_the_checks_can_fail(tmp_path: Path) -> None:
    script = _script()
    line = script.Line("-", "x", "trees", "284", "outpace.nowhere", "")
    silent = script.Line("-", "y", "trees", "284", "-", "")
    foreign = script.Line("9", "u", "trees", "284", "json", "")
    table = tmp_path / "methods.tsv"
    table.write_text("n\tname\tfamily\n7\tz\tspec-trees\n8\tw\tspeech\n", encoding="utf-8")
    assert script.faults([line, silent, silent, foreign], table) == [
        "y: neither a module nor a reason.",
        "y: neither a module nor a reason.",
        "x: outpace.nowhere does not import.",
        "u: json does not import.",
        "y: listed twice.",
        "Number 9: no such system.",
        "System 7, z: no line.",
    ]
