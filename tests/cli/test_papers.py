"""The catalogue of papers: equal to the code that declares them, titles as published, commands that parse."""

from __future__ import annotations

import csv
import importlib.util
import json
import shlex
from pathlib import Path

import pytest
from tests_cli import ROOT, Command

from outpace import papers
from outpace.methods import catalogue

ENTRIES = papers.papers()
NAMES = [f"{entry['number']} {entry['title'][:40]}" for entry in ENTRIES]


def test_the_catalogue_equals_what_the_code_declares() -> None:
    assert catalogue.build_papers() == ENTRIES, "run: python -m outpace.methods.catalogue"


def test_every_system_of_our_catalogue_has_a_title() -> None:
    with (ROOT / "docs/systems.tsv").open(encoding="utf-8") as file:
        numbers = {int(line["n"]) for line in csv.DictReader(file, delimiter="\t")}
    assert set(papers.titles()) == numbers and all(papers.titles().values())


def test_what_the_taxonomy_names_as_built_is_in_the_catalogue() -> None:
    with (ROOT / "docs/taxonomy.tsv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    numbered = [line for line in lines if line["number"] != "-"]
    built = {int(line["number"]) for line in numbered if line["module"] != "-"}
    listed = {int(line["number"]) for line in numbered}  # the surveys do not know every paper
    assert built == listed & {entry["number"] for entry in ENTRIES}


@pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
def test_titles_are_those_of_the_papers(entry: dict[str, object]) -> None:
    titles = papers.titles()
    assert entry["title"] == titles.get(entry["number"], entry["title"])
    is_whole = not entry["left_out"]  # a part of a system is not that system
    assert entry["number"] is not None or not is_whole or entry["title"] not in titles.values(), "it has a number"


@pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
def test_shown_commands_parse_and_fit(entry: dict[str, str]) -> None:
    from typer.main import get_command

    from outpace.cli import app
    from outpace.cli.checks import check_method
    from outpace.cli.values import options
    from outpace.laws.registry import read_law
    from outpace.methods.registry import load_method
    from outpace.train import TRANSLATIONS
    from outpace.train.recipes import ORDERS

    [program, name, *arguments], command = shlex.split(entry["command"]), get_command(app)
    if program == "python":
        assert name == "-m" and importlib.util.find_spec(arguments[0])
        return
    assert program == "outpace"
    with command.commands[name].make_context(name, arguments) as context:
        given = context.params
    if name == "generate":
        settings = {key: value for key, value in options(given["option"] or []).items() if not value.isupper()}
        if given["search"]:
            from outpace.search.base import read_search

            _, rest = read_search(given["search"], given["method"] or "autoregressive", settings)
            check_method(given["model"], given["method"] or "autoregressive", rest or {})
        elif given["model"].startswith("runs/"):  # what a recipe makes
            assert Path(given["model"]).name in {**TRANSLATIONS, **ORDERS}
            load_method(given["method"])
        else:
            check_method(given["model"], given["method"] or "autoregressive", settings)
        for law in given["law"] or ():
            read_law(law)


def test_papers_can_be_read(cli: Command) -> None:
    listed = cli("papers").out
    assert all(str(entry["number"] or "-") in listed for entry in ENTRIES)
    told = cli("papers", "91").out
    assert told.startswith("Fast Inference from Transformers via Speculative Decoding\n")
    assert "method draft-model" in told and "Lenience" in told and "--method draft-model" in told
    assert json.loads(cli("papers", "--json").out) == ENTRIES
    assert json.loads(cli("papers", "91", "--json").out) == papers.find("91")[0]
    found = json.loads(cli("papers", "Jacobi", "--json").out)
    assert any("method jacobi" in entry["runs"] for entry in found)


def test_a_paper_that_does_not_work_here_is_named(cli: Command) -> None:
    ended = cli("papers", "81")
    assert ended.status == 2 and "USYD-JD" in ended.err and "does not work here" in ended.err
    ended = cli("papers", "no-such-word")
    assert ended.status == 2 and "No paper here has 'no-such-word'" in ended.err


def test_cite_reads_the_same_catalogue(cli: Command) -> None:
    assert cli("cite", "91").out == cli("cite", "draft-model").out
    assert "eprint = {2410.17891}" in cli("cite", "303").out
