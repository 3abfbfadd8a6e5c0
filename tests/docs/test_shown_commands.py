"""Every command that source, pages and scripts show is one: its module exists and its parser takes the line."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for folder, pattern in (("src", "*.py"), ("src", "*.md"), ("docs", "*.sh"), ("docs", "*.py"), ("docs", "*.md"))
    for path in sorted((ROOT / folder).rglob(pattern))
]
REST = r'((?: "[^"\n]*"| [\w./=:,$-]+| \[[^\]]*\])*)'
MODULE = re.compile(r'(?:python|"\$PYTHON") -m (outpace\.[\w.]*\w)' + REST)
SUBCOMMAND = re.compile(r'^(?:    |`)?(?:\.venv/bin/outpace|outpace|"\$OUTPACE") ([a-z][\w-]+)' + REST, re.MULTILINE)
STANDS_FOR = {"RECIPE": "stories", "N": "1", "DIR...": "DIR"}


class ParsedError(Exception):
    """The parser took the line."""


def shown(pattern: re.Pattern[str]) -> list[object]:
    found = {}
    for path in FILES:
        text = re.sub(r"\\+\n\s*", "", path.read_text(encoding="utf-8"))
        for name, rest in pattern.findall(text):
            words = " ".join(STANDS_FOR.get(word, word) for word in re.sub(r"[\[\]$]", "", rest).rstrip(".,:").split())
            found.setdefault((name, words), f"{path.relative_to(ROOT).as_posix()}: {name} {words}")
    return [pytest.param(name, words, id=label) for (name, words), label in found.items()]


@pytest.mark.parametrize(("name", "arguments"), shown(MODULE))
def test_modules(name: str, arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec(name)
    assert found is not None and found.origin is not None
    module = importlib.import_module(f"{name}.__main__" if found.submodule_search_locations else name)
    assert module.__file__ and "__main__" in Path(module.__file__).read_text(encoding="utf-8"), (
        "running it does nothing"
    )
    if not arguments or not hasattr(module, "main"):  # it takes none, or is only run by another module
        return
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, given: list[str] | None = None) -> None:
        parse(parser, given)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", [name, *shlex.split(arguments)])
    with pytest.raises(ParsedError):
        module.main()


@pytest.mark.parametrize(("name", "arguments"), shown(SUBCOMMAND))
def test_subcommands(name: str, arguments: str) -> None:
    from typer.main import get_command

    from outpace.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert name in commands
    commands[name].make_context(name, shlex.split(arguments)).close()


def test_there_are_some() -> None:
    assert len(shown(MODULE)) >= 10 and len(shown(SUBCOMMAND)) >= 10
