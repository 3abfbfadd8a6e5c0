"""`outpace methods`: what there is, from the generated catalogue; only a named model imports methods and torch."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from outpace.cli.output import print_json, print_table
from outpace.methods.catalogue import needs_in_words

__all__ = ["methods"]


def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method in full.")] = None,
    model: Annotated[str, typer.Option(help="List only those that fit this model.", show_default=False)] = "",
    json: Annotated[bool, typer.Option("--json", help="Print JSON: a list, or one object with NAME.")] = False,
) -> None:
    """List the decoding methods, or tell all about one."""
    from outpace.methods import catalogue

    if name is not None:
        entry = catalogue.find(name)
        print_json(entry) if json else typer.echo(_describe(entry))
        return
    entries = _fitting(catalogue.methods(), model) if model else catalogue.methods()
    if json:
        print_json(entries)
    else:
        heads = ("name", "guarantee", "what it does; family, needs, paper")
        print_table(heads, ((one["name"], one["guarantee"], _summary(one), _facts(one)) for one in entries))


def _fitting(entries: list[dict[str, Any]], model: str) -> list[dict[str, Any]]:
    """Return the methods that can decode a model under their default settings."""
    from outpace.methods.misfit import misfits
    from outpace.methods.registry import load_method
    from outpace.models.opening import offered_by, open_model

    offered = offered_by(model) or open_model(model).capabilities
    return [entry for entry in entries if not misfits(load_method(entry["name"])(), offered)]


def _summary(entry: dict[str, Any]) -> str:
    return str(entry["summary"]) or f"`outpace methods {entry['name']}` loads it and tells more."


def _facts(entry: dict[str, Any]) -> str:
    if not entry["family"]:
        return f"from the package {entry['plugin']}"
    needs, paper = needs_in_words(entry["needs"]), _short(entry["paper"])
    return "; ".join(item for item in (entry["family"], needs and f"needs {needs}", paper) if item)


def _describe(entry: dict[str, Any]) -> str:
    lines = [f"{entry['name']}: {entry['summary']}", "", entry["doc"], ""]
    lines += [f"family     {entry['family']}", f"guarantee  {entry['guarantee']} (under default settings)"]
    lines += [f"needs      {needs_in_words(entry['needs']) or 'nothing special'}"]
    paper = entry["paper"]
    if paper:
        where = f", arXiv {paper['arxiv']}" if paper["arxiv"] else ""
        lines += [f"paper      {paper['title']}. {paper['authors']} ({paper['year']}){where}"]
        lines += [f"left out   {paper['left_out']}"] if paper["left_out"] else []
    if entry["plugin"]:
        lines += [f"package    {entry['plugin']}"]
    lines += ["", "settings, given as -o name=value:" if entry["settings"] else "No settings."]
    for setting in entry["settings"]:
        lines += [f"  {setting['name']} = {_value(setting['default'])}", f"      {setting['doc']}"]
    return "\n".join(lines)


def _short(paper: dict[str, Any] | None) -> str:
    if not paper:
        return ""
    first = paper["authors"].split(",")[0].removesuffix(" et al.")
    return f"{first} {paper['year']}" + (f", {paper['arxiv']}" if paper["arxiv"] else "")


def _value(value: Any) -> str:
    return ",".join(map(str, value)) or "(empty)" if isinstance(value, list) else str(value)
