"""`outpace papers`: the published systems that work here, from the generated catalogue; imports no torch."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from outpace.cli.output import print_json, print_table

__all__ = ["papers"]


def papers(
    wanted: Annotated[
        str | None,
        typer.Argument(
            metavar="[NUMBER|WORD]",
            help="A system's number, or a word of its title, authors or method.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON: a list, or one object with NUMBER.")] = False,
) -> None:
    """List the published systems that work here: what runs each, what it guarantees, and what was left out.

    Where one is left, all is told of it, with the command that shows it.
    """
    from outpace import papers as catalogue

    found = catalogue.papers() if wanted is None else catalogue.find(wanted)
    if json:
        is_one = wanted is not None and wanted.isdecimal() and len(found) == 1
        print_json(found[0] if is_one else found)
    elif len(found) == 1:
        typer.echo(_describe(found[0]))
    else:
        print_table((">number", "guarantee", "title; what runs it"), map(_line, found))


def _line(entry: dict[str, Any]) -> tuple[str, str, str, str]:
    number = "-" if entry["number"] is None else str(entry["number"])
    return number, entry["guarantee"] or "-", entry["title"], ", ".join(entry["runs"])


def _describe(entry: dict[str, Any]) -> str:
    where = f", arXiv {entry['arxiv']}" if entry["arxiv"] else ""
    facts = {
        "number": "none" if entry["number"] is None else entry["number"],
        "authors": f"{entry['authors']} ({entry['year']}){where}",
        "runs": ", ".join(entry["runs"]),
        "guarantee": entry["guarantee"] or "none: it writes no text of a promised law",
        "shown by": entry["command"],
        "left out": entry["left_out"] or "nothing",
    }
    return "\n".join([entry["title"], "", *(f"{name:<11}{fact}" for name, fact in facts.items())])
