"""A trace as one self-contained web page: coloured text, every step's tree, acceptance by depth, time by phase."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

__all__ = ["render", "summarise"]

_TEMPLATE = "page.html"


def render(head: dict[str, Any], steps: Sequence[dict[str, Any]], results: Sequence[dict[str, Any]]) -> str:
    """Return the page; it needs no network and no other file."""
    data = {"head": head, "steps": list(steps), "results": list(results), "summary": summarise(steps)}
    # "<" never stands in the script, so no text of a model can end it.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    template = files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return template.replace("/*DATA*/null", text)


def summarise(steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return acceptance by depth, time by phase, and per drafter: steps, drafts, accepted drafts, tokens, seconds.

    A depth counts as tried in a step when a node of that depth was proposed and the walk had reached the one above.
    """
    tried: dict[int, int] = {}
    kept: dict[int, int] = {}
    phases: dict[str, float] = {}
    drafters: dict[str, dict[str, float]] = {}
    for step in steps:
        for name, value in step["seconds"].items():
            phases[name] = phases.get(name, 0.0) + value
        spent = sum(step["seconds"].values()) / max(1, len(step["rows"]))
        for row in step["rows"]:
            accepted = sum(node >= 0 for node in row["path"])
            draft = row.get("draft", {"tokens": [], "parent": []})
            depths = _depths(draft["parent"])
            for depth in range(1, min(accepted + 1, max(depths, default=0)) + 1):
                tried[depth] = tried.get(depth, 0) + 1
                kept[depth] = kept.get(depth, 0) + (depth <= accepted)
            facts = drafters.setdefault(row.get("origin") or "plain", dict.fromkeys(_FACTS, 0.0))
            values = (1, len(draft["tokens"]), accepted, len(row["tokens"]), spent)
            for name, value in zip(_FACTS, values, strict=True):
                facts[name] += value
    by_depth = [{"depth": depth, "tried": tried[depth], "kept": kept[depth]} for depth in sorted(tried)]
    return {"depths": by_depth, "phases": phases, "drafters": drafters}


_FACTS = ("steps", "drafts", "accepted", "tokens", "seconds")


def _depths(parent: Sequence[int]) -> list[int]:
    depths: list[int] = []
    for above in parent:
        depths.append(1 if above < 0 else depths[above] + 1)
    return depths
