"""`outpace searches` and `outpace laws`: what stands beside the method, listed, or one in full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from outpace.cli.output import print_json, print_table

__all__ = ["laws", "searches"]


def searches(
    name: Annotated[str | None, typer.Argument(help="Show one search in full.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON: a list, or one object with NAME.")] = False,
) -> None:
    """List the searches, or tell all about one."""
    from outpace.search.registry import load_search, search_names

    def told(one: str) -> dict[str, Any]:
        entry = _told(one, load_search(one))
        returns = "the best texts" if any(setting["name"] == "n_best" for setting in entry["settings"]) else "one text"
        return {"name": one, "returns": returns, **entry}

    _show(name, search_names(), told, json, column="returns", given="-o name=value")


def laws(
    name: Annotated[str | None, typer.Argument(help="Show one law in full.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON: a list, or one object with NAME.")] = False,
) -> None:
    """List the laws over the next token, or tell all about one."""
    from outpace.laws.base import Control
    from outpace.laws.registry import law_names, load_law

    def told(one: str) -> dict[str, Any]:
        entry, kind = _told(one, load_law(one)), load_law(one)
        looks_at = "the text" if kind.target is Control.target else "what models say"
        return {"name": one, "looks_at": looks_at, **entry}

    _show(name, law_names(), told, json, column="looks_at", given="--law LAW:name=value,name=value")


def _show(
    name: str | None,
    names: Sequence[str],
    told: Callable[[str], dict[str, Any]],
    json: bool,
    *,
    column: str,
    given: str,
) -> None:
    if name is not None:
        entry = told(name)
        print_json(entry) if json else typer.echo(_describe(entry, given))
        return
    entries = [told(one) for one in names]
    if json:
        print_json(entries)
    else:
        heads = ("name", column.replace("_", " "), "what it does; settings")
        print_table(heads, ((one["name"], one[column], one["summary"], _names(one)) for one in entries))


def _told(name: str, kind: Any) -> dict[str, Any]:
    """Return what a search or law says of itself, as JSON-ready values."""
    import inspect
    import sys
    from dataclasses import fields

    from outpace.methods.catalogue import settings_of
    from outpace.search.rewards import Reward
    from outpace.setting import note_of

    settings, notes = settings_of(kind), {field.name: note_of(field) for field in fields(kind)}
    for setting in settings:
        if isinstance(setting["default"], Reward):
            setting["default"] = setting["default"].name
        if not setting["doc"]:
            setting["doc"] = notes[setting["name"]]
    doc = inspect.cleandoc(sys.modules[kind.__module__].__doc__ or "")
    return {"name": name, "summary": kind.summary, "settings": settings, "doc": doc}


def _names(entry: dict[str, Any]) -> str:
    return ", ".join(setting["name"] for setting in entry["settings"])


def _describe(entry: dict[str, Any], given: str) -> str:
    lines = [f"{entry['name']}: {entry['summary']}", "", entry["doc"], "", f"settings, given as {given}:"]
    for setting in entry["settings"]:
        lines += [f"  {setting['name']} = {setting['default']!s}", f"      {setting['doc']}"]
    return "\n".join(lines)
