"""`outpace searches`: what holds several texts of a prompt and returns the best, beside any exact method."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from outpace.cli.output import print_json, print_table

__all__ = ["searches"]


def searches(
    name: Annotated[str | None, typer.Argument(help="Show one search in full.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON: a list, or one object with NAME.")] = False,
) -> None:
    """List the searches, or tell all about one."""
    from outpace.search.registry import search_names

    if name is not None:
        entry = _told(name)
        print_json(entry) if json else typer.echo(_describe(entry))
        return
    entries = [_told(one) for one in search_names()]
    if json:
        print_json(entries)
    else:
        heads = ("name", "returns", "what it does; settings")
        print_table(heads, ((one["name"], one["returns"], one["summary"], _names(one)) for one in entries))


def _told(name: str) -> dict[str, Any]:
    """Return what a search says of itself, as JSON-ready values."""
    import inspect
    import sys

    from outpace.methods.catalogue import settings_of
    from outpace.search.registry import load_search
    from outpace.search.rewards import Reward

    kind = load_search(name)
    settings = settings_of(kind)
    for setting in settings:
        if isinstance(setting["default"], Reward):
            setting["default"] = setting["default"].name
    doc = inspect.cleandoc(sys.modules[kind.__module__].__doc__ or "")
    returns = "the best texts" if any(one["name"] == "n_best" for one in settings) else "one text"
    return {"name": name, "returns": returns, "summary": kind.summary, "settings": settings, "doc": doc}


def _names(entry: dict[str, Any]) -> str:
    return ", ".join(setting["name"] for setting in entry["settings"])


def _describe(entry: dict[str, Any]) -> str:
    lines = [f"{entry['name']}: {entry['summary']}", "", entry["doc"], "", "settings, given as -o name=value:"]
    for setting in entry["settings"]:
        lines += [f"  {setting['name']} = {setting['default']!s}", f"      {setting['doc']}"]
    return "\n".join(lines)
