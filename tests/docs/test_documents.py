"""What the documents show works: their Python runs, their commands parse, their links lead somewhere."""

import asyncio
import json
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import outpace
from outpace.server.listening import address, bind, server
from outpace.server.settings import ServerSettings

PORT = "http://127.0.0.1:8000"
ROOT = Path(__file__).parents[2]
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "PHILOSOPHY.md", "CHANGELOG.md")]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NAMES = [str(path.relative_to(ROOT)) for path in [*FRONT, *PAGES]]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The URL of a server, in place of the one that a reader has started."""
    ready, bound = threading.Event(), bind("127.0.0.1", 0)
    made = server({"stories": outpace.Engine("stories")}, ServerSettings(drain_s=1), ready.set)
    thread = threading.Thread(target=lambda: asyncio.run(made.serve(sockets=[bound])))
    thread.start()
    assert ready.wait(60)
    yield address(bound)
    made.should_exit = True
    thread.join(60)
    bound.close()


@pytest.mark.parametrize("name", ["README.md", "docs/index.md"])
def test_shown_python_runs(name: str, served: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = blocks(ROOT / name, "python")
    assert shown
    for code in shown:
        exec(compile(code.replace(PORT, served), name, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_shown_requests_are_answered(served: str) -> None:
    shown = [block for block in blocks(ROOT / "README.md", "console") if "curl " in block]
    assert shown
    for block in shown:
        lines = block.replace("\\\n", " ").splitlines()
        for line in (line for line in lines if line.startswith("curl ")):
            done = subprocess.run(["curl", "-s", *shlex.split(line.replace(PORT, served))[1:]], capture_output=True)
            assert json.loads(done.stdout)["choices"][0]["text"].strip(), done.stdout


COMMANDS = [
    pytest.param(line, id=f"{name}: {line[:60]}")
    for name in NAMES
    for block in blocks(ROOT / name, "console")
    for line in block.splitlines()
    if line.startswith("outpace ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_shown_commands_parse(line: str) -> None:
    from typer.main import get_command

    from outpace.cli import app

    command, [_, name, *arguments] = get_command(app), shlex.split(line)
    assert name in command.commands, line
    command.commands[name].make_context(name, arguments).close()


@pytest.mark.parametrize("path", FRONT, ids=lambda path: path.name)
def test_links_of_the_front_pages_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("target", ["demo", "test", "certify", "bench", "docs", "lint", "types", "catalogue"])
def test_make_has_the_targets_that_the_documents_name(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
