"""The catalogue of methods: generated from the classes, read without importing them.

`python -m outpace.methods.catalogue` rewrites `catalogue.json`; a test proves that the file equals the classes.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outpace.errors import ConfigError, nearest
from outpace.methods.registry import built_in_names, load_method, plugin_origins

if TYPE_CHECKING:
    from outpace.methods.base import Method

__all__ = ["build", "describe", "find", "methods"]

_FILE = Path(__file__).with_name("catalogue.json")


def methods() -> list[dict[str, Any]]:
    """Return one entry per method, built-in ones first; no method is imported.

    Each entry has name, family, guarantee (under default settings), needs (absent = not needed), paper (or None),
    summary, settings (name, default, doc), doc (the module's docstring) and plugin (the package of a plug-in, else "").
    Of plug-ins, only name, guarantee "plug-in" and plugin are known; `find` loads one and tells the rest.
    """
    known: list[dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))
    empty: dict[str, Any] = {"family": "", "guarantee": "plug-in", "needs": {}, "paper": None}
    empty |= {"summary": "", "settings": [], "doc": ""}
    return known + [{"name": name, **empty, "plugin": origin} for name, origin in plugin_origins().items()]


def find(name: str) -> dict[str, Any]:
    """Return the entry of one method; a plug-in is imported for it.

    Raises:
        ConfigError: no such method; the hint names the nearest.
        PluginError: a plug-in does not load.
    """
    entries = {entry["name"]: entry for entry in methods()}
    if name not in entries:
        raise ConfigError(f"There is no method {name!r}.", nearest(name, entries, "method"))
    if not entries[name]["plugin"]:
        return entries[name]
    return {**describe(load_method(name)), "name": name, "plugin": entries[name]["plugin"]}


def build() -> list[dict[str, Any]]:
    """Return the entries of the built-in methods, made from their classes."""
    return [describe(load_method(name)) for name in built_in_names()]


def describe(kind: type[Method]) -> dict[str, Any]:
    """Return what a method's class says of itself, as JSON-ready values."""
    method = kind()
    entry = {
        "name": kind.name,
        "family": kind.family,
        "guarantee": method.guarantee.value,
        "needs": {key: value for key, value in dataclasses.asdict(method.needs).items() if value},
        "paper": dataclasses.asdict(kind.paper) if kind.paper else None,
        "summary": kind.summary,
        "settings": _settings(kind),
        "doc": inspect.cleandoc(sys.modules[kind.__module__].__doc__ or ""),
        "plugin": "",
    }
    return json.loads(json.dumps(entry))  # type: ignore[no-any-return]


def _settings(kind: type[Method]) -> list[dict[str, Any]]:
    # A class says what its own settings mean, and leaves those that it inherits to its bases.
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        docs |= _attributes(inspect.cleandoc(base.__doc__ or ""))
    fields = dataclasses.fields(kind)
    return [{"name": field.name, "default": field.default, "doc": docs.get(field.name, "")} for field in fields]


def _attributes(doc: str) -> dict[str, str]:
    """Read the section "Attributes:" of a docstring: what it says of each name, or of several ("early, late: ...")."""
    section = re.search(r"^Attributes:\n((?: .*\n?|\n)+)", doc, flags=re.MULTILINE)
    if section is None:
        return {}
    items = re.findall(r"^    (\w+(?:, \w+)*): ((?:.*)(?:\n     +.*)*)", section[1], flags=re.MULTILINE)
    return {name: " ".join(text.split()) for names, text in items for name in names.split(", ")}


def _write() -> None:
    _FILE.write_text(json.dumps(build(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Wrote {len(built_in_names())} methods to {_FILE.name}.")


if __name__ == "__main__":
    _write()
