"""The catalogues of methods and of papers: generated from the code that runs them, read without importing it.

`python -m outpace.methods.catalogue` rewrites `catalogue.json` and `papers/papers.json`; a test proves that they equal
what the classes and modules say.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outpace.errors import ConfigError, nearest
from outpace.methods.registry import built_in_names, load_method, plugin_origins
from outpace.papers import FILE as PAPERS_FILE
from outpace.papers import Paper

if TYPE_CHECKING:
    from outpace.methods.base import Method

__all__ = ["build", "build_papers", "describe", "find", "methods", "needs_in_words", "settings_of"]

_FILE = Path(__file__).with_name("catalogue.json")
_NEEDED = {
    "has_tree": "tree attention",
    "has_rollback": "a cache that rolls back",
    "has_skip": "layers that can be skipped",
    "has_mask": "a mask token",
}
_PROMPT = '"Once upon a time"'
_SHOWN_ON = {
    "canvas": " --model stories-mask",
    "block": " --model stories-block",
}  # by attention; else the default model


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
        "needs": {key: value for key, value in dataclasses.asdict(method.needs).items() if _asks(value)},
        "paper": dataclasses.asdict(kind.paper) if kind.paper else None,
        "summary": kind.summary,
        "settings": settings_of(kind),
        "doc": inspect.cleandoc(sys.modules[kind.__module__].__doc__ or ""),
        "plugin": "",
    }
    return json.loads(json.dumps(entry))  # type: ignore[no-any-return]


def needs_in_words(needs: dict[str, Any]) -> str:
    """Return what a method needs beyond a causal model, from its entry's "needs"; "" = nothing."""
    words = [f"{needs['attention']} attention"] if needs.get("attention", "causal") != "causal" else []
    words += [text for key, text in _NEEDED.items() if needs.get(key)]
    outputs = needs.get("outputs", {})
    words += [f"hidden states of layers {', '.join(map(str, outputs['layers']))}"] if outputs.get("layers") else []
    words += [f"a one-pass network of the kind {' or '.join(needs['kinds'])}"] if needs.get("kinds") else []
    words += ["the last hidden state"] if outputs.get("has_last") else []
    words += [f"a {head} head" for head in outputs.get("heads", [])]
    return ", ".join(words + [f"a {role} model" for role in needs.get("models", [])])


def _asks(value: Any) -> bool:
    return any(value.values()) if isinstance(value, dict) else bool(value)


def build_papers() -> list[dict[str, Any]]:
    """Return the entries of `outpace.papers.papers`, from the classes of methods and from each module's `PAPERS`."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for paper, runs, command, guarantee in (*_method_papers(), *_module_papers()):
        entry = dataclasses.asdict(paper) | {"command": command, "guarantee": guarantee, "runs": [runs]}
        place = sys.maxsize if paper.number is None else paper.number  # those without a number last
        known = found.setdefault((place, paper.title), entry)
        known["runs"] = list(dict.fromkeys([*known["runs"], runs]))
    return [found[key] for key in sorted(found)]


def _method_papers() -> Iterator[tuple[Paper, str, str, str]]:
    """Yield each paper of each method, what runs it, the command that shows it, and what that guarantees."""
    for name in built_in_names():
        kind = load_method(name)
        for paper in (*([kind.paper] if kind.paper else []), *kind.papers):
            model = _SHOWN_ON.get(kind().needs.attention, "")
            command = paper.command or f"outpace generate {_PROMPT}{model} --method {name}"
            yield paper, f"method {name}", command, kind.from_settings(_options(command)).guarantee.value


def _options(command: str) -> dict[str, str]:
    """Return the method's settings in a command, but for a name in capitals, such as FILE, that stands for a file."""
    words = shlex.split(command)
    pairs = [words[place + 1].partition("=") for place, word in enumerate(words) if word in ("-o", "--option")]
    return {name: value for name, _, value in pairs if not value.isupper()}


def _module_papers() -> Iterator[tuple[Paper, str, str, str]]:
    """Yield the same of the modules that declare papers; only these are imported."""
    home = Path(__file__).parents[1]
    for path in sorted(home.rglob("*.py")):
        if re.search(r"^PAPERS\b", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            name = ".".join(["outpace", *path.relative_to(home).with_suffix("").parts]).removesuffix(".__init__")
            for paper in importlib.import_module(name).PAPERS:
                words = shlex.split(paper.command)
                shown = words[: 3 if words[0] == "python" else 2]
                runs = f"recipe {words[2]}" if words[1] == "train" else f"command {' '.join(shown)}"
                if "--search" in words:
                    runs = f"search {words[words.index('--search') + 1]}"
                yield paper, runs, paper.command, ""


def settings_of(kind: type[Any]) -> list[dict[str, Any]]:
    """Return the settings of a class with a docstring for each: name, default, doc."""
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
    for path, entries in ((_FILE, build()), (PAPERS_FILE, build_papers())):
        path.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"Wrote {len(entries)} entries to {path.name}.")


if __name__ == "__main__":
    _write()
