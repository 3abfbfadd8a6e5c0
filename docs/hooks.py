"""Build-time pieces of the site: the method catalogue, the help of each command, and links out of the docs folder.

A page asks for a piece with a comment on a line of its own, for example `<!-- outpace: catalogue -->`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CATALOGUE = ROOT / "src/outpace/catalogue.json"
COMMANDS = ("generate", "methods", "models", "certify", "bench", "train", "new-method")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each `<!-- outpace: NAME -->` by what `PIECES[NAME]` returns; an unknown name fails the build."""
    return re.sub(r"^<!-- outpace: ([a-z-]+) -->$", lambda match: PIECES[match[1]](), markdown, flags=re.MULTILINE)


def catalogue() -> str:
    """One section per method, from the generated catalogue."""
    entries = json.loads(CATALOGUE.read_text(encoding="utf-8"))
    methods = entries["methods"] if isinstance(entries, dict) and "methods" in entries else entries
    rows = [dict(entry, name=name) for name, entry in methods.items()] if isinstance(methods, dict) else methods
    return "\n\n".join(_method(row) for row in sorted(rows, key=lambda row: str(row["name"])))


def _method(entry: dict[str, Any]) -> str:
    facts = [(key, value) for key, value in entry.items() if key not in ("name", "summary", "settings", "doc")]
    lines = [f"## {entry['name']}", "", str(entry.get("summary", "")), "", "| | |", "|---|---|"]
    given = [(key.replace("_", " "), _cell(value)) for key, value in facts if value not in (None, "", [], {})]
    lines += [f"| {key} | {value} |" for key, value in given]
    settings = entry.get("settings") or []
    if settings:
        columns = list(settings[0])
        lines += ["", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        cells = [[_cell(setting.get(column, "")) for column in columns] for setting in settings]
        lines += ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        value = ", ".join(f"{key}: {_cell(item)}" for key, item in value.items())
    elif isinstance(value, list):
        value = ", ".join(map(str, value))
    return str(value).replace("|", "\\|").replace("\n", " ")


def command_line() -> str:
    """The `--help` text of each command, as the installed version prints it."""
    return "\n\n".join(f"## outpace {name}\n\n```text\n{_help(name)}\n```" for name in COMMANDS)


def _help(command: str) -> str:
    plain = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    program = [sys.executable, "-c", "import sys; from outpace.cli import main; sys.argv[0] = 'outpace'; main()"]
    run = subprocess.run([*program, command, "--help"], env=plain, capture_output=True, text=True, check=True)
    return "\n".join(line.rstrip() for line in run.stdout.strip().splitlines())


PIECES = {"catalogue": catalogue, "command-line": command_line}
