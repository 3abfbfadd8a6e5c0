"""Build-time pieces of the site: the catalogues of methods and papers, and the help of each command.

A page asks for a piece with a comment on a line of its own, for example `<!-- outpace: catalogue -->`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from outpace.methods.catalogue import needs_in_words
from outpace.papers import papers as published

ROOT = Path(__file__).parent.parent
CATALOGUE = ROOT / "src/outpace/methods/catalogue.json"
FIGURES = ROOT / "docs/results"
COMMANDS = (
    "generate",
    "score",
    "methods",
    "models",
    "certify",
    "bench",
    "quantize",
    "tune",
    "trace",
    "index",
    "train",
    "new-method",
    "papers",
    "cite",
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each `<!-- outpace: NAME -->` by what `PIECES[NAME]` returns; an unknown name fails the build."""
    return re.sub(r"^<!-- outpace: ([a-z-]+) -->$", lambda match: PIECES[match[1]](), markdown, flags=re.MULTILINE)


def overview() -> str:
    """One sortable line per method: what it needs and promises, and its speed on each prompt set."""
    entries, measured = json.loads(CATALOGUE.read_text(encoding="utf-8")), _measured()
    kinds = [(place, key) for place in measured for key in dict.fromkeys(map(_kind, place["rows"]))]
    head = ["method", "needs", "guarantee"]
    head += [f"x plain, {_size(place)}: {label}" for place, label in kinds]
    rows = []
    for entry in entries:
        name = entry["name"]
        cells = [f"[{name}](#{name})", needs_in_words(entry["needs"]) or "a causal model", entry["guarantee"]]
        for place, label in kinds:
            found = [row for row in place["rows"] if row["method"] == name and _kind(row) == label]
            ratio = found[0]["ratio_plain"] if found else None
            cells.append(f"{ratio['median']:.2f}" if ratio else "")
        rows.append(tuple(cells))
    return _sortable(head, rows)


def papers() -> str:
    """One sortable line per published system that works here."""
    rows = [
        (
            "" if entry["number"] is None else str(entry["number"]),
            f"[{entry['title']}](https://arxiv.org/abs/{entry['arxiv']})" if entry["arxiv"] else entry["title"],
            ", ".join(map(_runs, entry["runs"])),
            entry["guarantee"],
            entry["left_out"],
        )
        for entry in published()
    ]
    return _sortable(["number", "paper", "runs", "guarantee", "not built"], rows)


def _runs(what: str) -> str:
    kind, _, name = what.partition(" ")
    return f"[{name}](#{name})" if kind == "method" else f"{kind} `{name}`"


def _sortable(head: list[str], rows: list[tuple[str, ...]]) -> str:
    """A table that the script `sort.js` sorts by the column whose head is clicked."""
    return f'<div class="sortable" markdown>\n\n{_table(head, rows)}\n\n</div>'


def catalogue() -> str:
    """One section per method, from the generated catalogue, with what `outpace bench --catalogue` measured."""
    entries, measured = json.loads(CATALOGUE.read_text(encoding="utf-8")), _measured()
    return "\n\n".join([*map(_measured_on, measured[:1]), *(_method(entry, measured) for entry in entries)])


def _method(entry: dict[str, Any], measured: Sequence[dict[str, Any]]) -> str:
    """Summary, what the method's file says of itself, what it needs, its settings and its figures."""
    paper = entry["paper"] or {}
    facts = {"family": entry["family"], **_said(entry["doc"]), "needs": needs_in_words(entry["needs"])}
    if paper.get("arxiv"):
        facts["paper"] = (
            f"[{paper['title']}](https://arxiv.org/abs/{paper['arxiv']}), {paper['authors']}, {paper['year']}"
        )
    if paper.get("left_out"):
        facts["not built"] = paper["left_out"]
    lines = [f"## {entry['name']}", entry["summary"], _table(["", f"*{entry['guarantee']}*"], facts.items())]
    if entry["settings"]:
        rows = [(f"`{item['name']}`", f"`{json.dumps(item['default'])}`", item["doc"]) for item in entry["settings"]]
        lines.append(_table(["setting", "default", "meaning"], rows))
    lines += _figures(entry["name"], measured)
    return "\n\n".join(lines)


def _measured() -> list[dict[str, Any]]:
    """The documents of `outpace bench --catalogue`, smallest model first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FIGURES.glob("catalogue*.json"))]
    return sorted(found, key=lambda document: document["model"]["parameters"])


def _measured_on(document: dict[str, Any]) -> str:
    facts = document["machine"]
    return (
        f"Figures: {facts['cpu']}, {facts['threads']} threads, batch 1, default settings, on the shipped prompt sets. "
        "*accepted* drafts per step and *tokens* per target forward do not depend on the machine; *x plain* is the "
        "median ratio of speeds to plain decoding, with its 95% interval. A method that needs a large target to pay "
        "loses on a small one. How and with which commands: [How we measure](measuring.md)."
    )


def _figures(name: str, measured: Sequence[dict[str, Any]]) -> list[str]:
    """A table of what was measured of a method, or the sentence that says why it was not."""
    found = [document for document in measured if any(row["method"] == name for row in document["rows"])]
    if not found:
        reasons = [item["reason"] for document in measured for item in document["skipped"] if item["name"] == name]
        return [f"Not measured: {reasons[0]}"] if reasons else []
    rows: dict[str, list[str]] = {}
    for place, document in enumerate(found):
        for row in (row for row in document["rows"] if row["method"] == name):
            line = rows.setdefault(
                _kind(row),
                [f"{row['accepted_per_step']:.2f}", f"{row['tokens_per_forward']:.2f}", *[""] * len(found)],
            )
            line[2 + place] = _interval(row["ratio_plain"])
    sizes = [f"x plain, {_size(document)} parameters" for document in found]
    cells = [(label, *line) for label, line in rows.items()]
    drafters = [
        f"Drafter at {_size(document)} parameters: {document['drafters'][name]}."
        for document in found
        if name in document.get("drafters", {})
    ]
    return [_table(["prompts", "accepted", "tokens", *sizes], cells), *drafters]


def _kind(row: dict[str, Any]) -> str:
    """The prompts of a row, and the law its texts were drawn from."""
    return f"{row['set']}, " + ("greedy" if row["temperature"] == 0 else f"T = {row['temperature']:g}")


def _size(document: dict[str, Any]) -> str:
    return f"{document['model']['parameters'] / 1e6:.3g}M"


def _interval(ratio: dict[str, Any] | None) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""


def _said(doc: str) -> dict[str, str]:
    """Read the lines "Word: text" of a method's module docstring."""
    items = re.findall(r"^([A-Z]\w+): (.*(?:\n +.*)*)", doc, flags=re.MULTILINE)
    return {word.lower(): " ".join(text.split()) for word, text in items}


def _table(head: list[str], rows: Iterable[tuple[str, ...]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *(line(row) for row in rows)])


def command_line() -> str:
    """The `--help` text of each command, as the installed version prints it."""
    return "\n\n".join(f"## outpace {name}\n\n```text\n{_help(name)}\n```" for name in COMMANDS)


def _help(command: str) -> str:
    plain = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "outpace", command, "--help"], env=plain, capture_output=True, text=True, check=True
    )
    return "\n".join(line.rstrip() for line in run.stdout.strip().splitlines())


PIECES = {"overview": overview, "papers": papers, "catalogue": catalogue, "command-line": command_line}
