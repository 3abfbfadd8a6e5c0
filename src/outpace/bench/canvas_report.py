"""The page and the pictures of the canvas benchmark."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from outpace.bench.canvas import SweepPoint, area, spell
from outpace.bench.plots import draw_sweeps
from outpace.bench.report import Table

__all__ = ["MOST", "OPEN", "canvas_page", "closest", "draw_canvases", "fixed_table", "reference_of", "rows_table"]

MOST = 8.0  # tokens per forward up to which areas are taken
OPEN = "stories"  # the set of open-ended texts
_COLUMNS = (
    "",
    "setting",
    "quality",
    "nats/token",
    "entropy",
    "tok/fwd",
    "forwards saved",
    "positions/tok",
    "other fwd/tok",
    "ms/tok",
    "speed",
)


def canvas_page(
    points: Sequence[SweepPoint], models: Sequence[str], causal: Sequence[str], facts: Mapping[str, Any]
) -> str:
    """Return all figures of a measurement as Markdown.

    Args:
        points: of all sweeps and sets.
        models, causal: the masked and the causal ones, as points name them.
        facts: threads, cpu and torch; num (texts of the open-ended set) and inflate (parameters, 0 = as shipped).
    """
    inflated = facts.get("inflate", 0)
    asked = f" --inflate {inflated}" if inflated else ""
    parts = [
        f"{facts.get('cpu', 'CPU')}, {facts['threads']} threads, torch {facts.get('torch', torch.__version__)}; "
        f"{facts['num']} texts per set (tasks: {2 * facts['num']}), batch 1, greedy. "
        f"`outpace bench --canvas FOLDER{asked}`\n"
    ]
    sets = list(dict.fromkeys(point.set for point in points))
    tasks = [item for item in sets if item != OPEN]
    for name in models:
        own = [point for point in points if point.model == name]
        parts.append(f"### {name}\n")
        parts += _stories_part(own, name) if OPEN in sets else []
        for item in tasks if inflated else ():
            group = [point for point in own if point.set == item]
            parts.append(f"{item}:\n\n{rows_table(group, reference_of(group, item, name))}")
        if tasks and not inflated:
            parts.append(f"Share solved against places written per step:\n\n{fixed_table(own, name, tasks)}")
            curves = [point for point in own if _is_curve(point)]
            parts.append(f"Area under share solved, 1 to {MOST:g} tok/fwd:\n\n{areas_table(curves, name, tasks, MOST)}")
    beside = [point for point in points if point.model in causal]
    if beside:
        parts.append("### The causal model on the same axes\n")
        for item in sets:
            group = [point for point in beside if point.set == item]
            parts.append(f"{item}:\n\n{rows_table(group, group[0] if group else None, with_model=True)}")
    return "\n".join(parts)


def _stories_part(own: Sequence[SweepPoint], model: str) -> list[str]:
    points = [point for point in own if point.set == OPEN]
    reference = reference_of(points, OPEN, model)
    if reference is None:
        return []
    groups: dict[str, list[SweepPoint]] = {}
    for point in points:
        groups.setdefault(point.arm, []).append(point)
    curves = {arm: group for arm, group in groups.items() if _is_curve(group[0])}
    fast = [found for group in curves.values() if (found := closest(group, reference))]
    rest = [point for point in points if not _is_curve(point)]
    kept = [reference, *sorted(fast, key=lambda point: -point.tokens_per_forward)]
    areas = sorted(((_short(arm), area(group, MOST)) for arm, group in curves.items()), key=lambda item: -item[1])
    title = "Stories: of each sampler the fastest setting within 2% of the reference's likelihood and entropy"
    return [
        f"{title} (the first line):\n\n{rows_table(kept, reference)}",
        f"Areas under likelihood per token, 1 to {MOST:g} tok/fwd: {', '.join(f'{a} {b:.3f}' for a, b in areas)}.\n",
        f"Caches and lossless methods on stories:\n\n{rows_table(rest, reference)}" if rest else "",
    ]


def _is_curve(point: SweepPoint) -> bool:
    """Whether a point belongs to a sampler's curve, not to the caches and lossless methods."""
    return not _short(point.arm).startswith(("threshold 0.9", "one per step", "FreeDave", "SSD"))


def draw_canvases(points: Sequence[SweepPoint], models: Sequence[str], causal: Sequence[str], folder: Path) -> None:
    """Draw the curves of each masked model, with those of the causal ones, into a folder.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    sets = list(dict.fromkeys(point.set for point in points))
    for name in models:
        shown = [
            dataclasses.replace(point, arm=_short(point.arm) if point.model == name else point.arm)
            for point in points
            if point.model in (name, *causal) and not _short(point.arm).startswith(("threshold 0.9", "one per step"))
        ]
        draw_sweeps(shown, sets, name, folder / f"{name}.png")


def fixed_table(points: Sequence[SweepPoint], model: str, sets: Sequence[str]) -> str:
    """Return a Markdown table: quality on each set against the number of places written per step, the surest first.

    Tasks whose answer tokens depend on each other lose by it; copying does not (ParallelBench).
    """
    arms, counts = ("confidence, fixed", "random, fixed"), (1, 2, 4, 8)
    cells = []
    for name in sets:
        line = [name]
        for arm in arms:
            group = [p for p in points if p.set == name and p.model == model and p.arm.endswith(arm)]
            found = {p.settings.get("per_step", 1): f"{p.quality:.2f}" for p in group}
            line += [found.get(count, "-") for count in counts]
        cells.append(line)
    columns = ["set", *(f"{arm}: {count}" if count == 1 else str(count) for arm in arms for count in counts)]
    return Table("", columns, cells).markdown() + "\n"


def areas_table(points: Sequence[SweepPoint], model: str, sets: Sequence[str], most: float) -> str:
    """Return a Markdown table: the area under each sampler's curve on each set, the best of a set in bold."""
    arms = list(dict.fromkeys(point.arm for point in points if point.model == model))
    areas = {
        (arm, name): area([p for p in points if p.arm == arm and p.set == name], most) for arm in arms for name in sets
    }
    best = {name: max(areas[arm, name] for arm in arms) for name in sets}

    def cell(arm: str, name: str) -> str:
        mark = "**" if areas[arm, name] == best[name] > 0 else ""
        return f"{mark}{areas[arm, name]:.2f}{mark}"

    cells = [[_short(arm), *(cell(arm, name) for name in sets)] for arm in arms]
    return Table("", ("sampler", *sets), cells).markdown() + "\n"


def rows_table(points: Sequence[SweepPoint], reference: SweepPoint | None, *, with_model: bool = False) -> str:
    """Return a Markdown table of points, one line each, beside a reference."""
    cells = []
    for point in points:
        tokens = max(point.tokens, 1)
        saved = speed = "-"
        if reference is not None and point.forwards:
            saved = f"{point.tokens_per_forward / reference.tokens_per_forward:.2f}x"
            speed = f"{(reference.seconds / max(reference.tokens, 1)) / (point.seconds / tokens):.2f}x"
        quality = [f"{value:.3f}" for value in (point.quality, point.nll, point.entropy)]
        work = [f"{point.tokens_per_forward:.2f}", saved, f"{point.positions / tokens:.1f}"]
        work += [f"{point.draft_forwards / tokens:.2f}", f"{1e3 * point.seconds / tokens:.2f}", speed]
        cells.append([point.arm if with_model else _short(point.arm), spell(point.settings), *quality, *work])
    return Table("", _COLUMNS, cells, left=2).markdown() + "\n"


def closest(points: Sequence[SweepPoint], reference: SweepPoint) -> SweepPoint | None:
    """Return the fastest of the points that keep quality and entropy within 2% of the reference's."""
    kept = [
        point
        for point in points
        if point.quality >= 0.98 * reference.quality and (not point.nll or point.entropy >= 0.98 * reference.entropy)
    ]
    return max(kept, key=lambda point: point.tokens_per_forward, default=None)


def reference_of(points: Sequence[SweepPoint], name: str, model: str) -> SweepPoint | None:
    """Return the point of one token per step, the surest first, with the exact cache."""
    wanted = {"set": name, "model": model, "method": "masked-diffusion"}
    for point in points:
        order, per_step = point.settings.get("order", "confidence"), point.settings.get("per_step", 1)
        if (order, per_step) == ("confidence", 1) and all(getattr(point, key) == wanted[key] for key in wanted):
            return point
    return None


def _short(arm: str) -> str:
    return arm.partition(": ")[2] or arm
