"""The tables and the pictures of the canvas benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outpace.bench.canvas import Point, area
from outpace.bench.plots import _figure

__all__ = ["areas_table", "closest", "draw_curves", "fixed_table", "reference_of", "rows_table"]

_COLOURS = (
    "#1b6ca8",
    "#c9803a",
    "#3a8f5c",
    "#8a4fa3",
    "#b03a48",
    "#555555",
    "#7fb2d9",
    "#a0a030",
    "#d06fa0",
    "#2aa198",
)
_MARKS = "osv^D*Xph<>"


def _is_close(point: Point, reference: Point) -> bool:
    """Quality no more than 2% below the reference's, and entropy within 2% of it (or above) for open-ended text."""
    is_good = point.quality >= 0.98 * reference.quality
    return is_good and (not point.nll or point.entropy >= 0.98 * reference.entropy)


def _reference(points: Sequence[Point], name: str, model: str) -> Point | None:
    found = [
        point
        for point in points
        if point.set == name
        and point.model == model
        and point.method == "masked-diffusion"
        and point.settings.get("per_step", 1) == 1
        and point.settings.get("order", "confidence") == "confidence"
    ]
    return found[0] if found else None


def fixed_table(points: Sequence[Point], model: str, sets: Sequence[str]) -> str:
    """Return a Markdown table: quality on each set against the number of places written per step, the surest first.

    Tasks whose answer tokens depend on each other lose by it; copying does not (ParallelBench).
    """
    arms = ("confidence, fixed", "random, fixed")
    lines = [f"| set | {' | '.join(f'{arm}: 1 | 2 | 4 | 8' for arm in arms)} |", "|---" * (1 + 4 * len(arms)) + "|"]
    for name in sets:
        cells = []
        for arm in arms:
            group = [p for p in points if p.set == name and p.model == model and p.arm.endswith(arm)]
            found = {p.settings.get("per_step", 1): p.quality for p in group}
            cells += [f"{found[count]:.2f}" if count in found else "-" for count in (1, 2, 4, 8)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def areas_table(points: Sequence[Point], model: str, sets: Sequence[str], most: float) -> str:
    """Return a Markdown table: the area under each sampler's curve on each set, the best of a set in bold."""
    arms = list(dict.fromkeys(point.arm for point in points if point.model == model))
    areas = {
        (arm, name): area([p for p in points if p.arm == arm and p.set == name], most) for arm in arms for name in sets
    }
    best = {name: max(areas[arm, name] for arm in arms) for name in sets}
    lines = [f"| sampler | {' | '.join(sets)} |", "|---" * (1 + len(sets)) + "|"]
    for arm in arms:
        cells = [
            f"**{areas[arm, name]:.2f}**" if areas[arm, name] == best[name] > 0 else f"{areas[arm, name]:.2f}"
            for name in sets
        ]
        lines.append(f"| {_short(arm)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def rows_table(points: Sequence[Point], reference: Point | None, *, with_model: bool = False) -> str:
    """Return a Markdown table of points, one line each, beside a reference."""
    lines = [
        "| | setting | quality | nats/token | entropy | tok/fwd | forwards saved | positions/tok | other fwd/tok "
        "| ms/tok | speed |",
        "|---" * 11 + "|",
    ]
    for point in points:
        tokens = max(point.tokens, 1)
        saved = speed = "-"
        if reference is not None and point.forwards:
            saved = f"{point.tokens_per_forward / reference.tokens_per_forward:.2f}x"
            speed = f"{(reference.seconds / max(reference.tokens, 1)) / (point.seconds / tokens):.2f}x"
        lines.append(
            f"| {point.arm if with_model else _short(point.arm)} | {_spell(point.settings)} | "
            f"{point.quality:.3f} | {point.nll:.3f} | "
            f"{point.entropy:.3f} | {point.tokens_per_forward:.2f} | {saved} | {point.positions / tokens:.1f} | "
            f"{point.draft_forwards / tokens:.2f} | {1e3 * point.seconds / tokens:.2f} | {speed} |"
        )
    return "\n".join(lines) + "\n"


def closest(points: Sequence[Point], reference: Point) -> Point | None:
    """Return the fastest of the points that keep quality and entropy within 2% of the reference's."""
    kept = [point for point in points if _is_close(point, reference)]
    return max(kept, key=lambda point: point.tokens_per_forward, default=None)


def reference_of(points: Sequence[Point], name: str, model: str) -> Point | None:
    """Return the point of one token per step, the surest first, with the exact cache."""
    return _reference(points, name, model)


def _short(arm: str) -> str:
    return arm.partition(": ")[2] or arm


def draw_curves(points: Sequence[Point], sets: Sequence[str], title: str, path: Path) -> None:
    """Draw quality along tokens per forward, one panel per set.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    columns = min(3, len(sets))
    lines = -(-len(sets) // columns)
    figure = _figure(5.6 * columns, 4.2 * lines)
    arms = list(dict.fromkeys(point.arm for point in points))
    for number, name in enumerate(sets):
        axes = figure.add_subplot(lines, columns, number + 1)
        for index, arm in enumerate(arms):
            group = sorted((p for p in points if p.set == name and p.arm == arm), key=lambda p: p.tokens_per_forward)
            if not group:
                continue
            style: dict[str, Any] = {"color": _COLOURS[index % len(_COLOURS)], "marker": _MARKS[index % len(_MARKS)]}
            axes.plot(
                [p.tokens_per_forward for p in group], [p.quality for p in group], label=arm, markersize=4, **style
            )
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("tokens per forward")
        axes.set_ylabel("likelihood per token" if any(p.nll for p in points if p.set == name) else "share solved")
        axes.set_ylim(bottom=0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    # One legend beside all panels: an arm looks the same in each.
    shown = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(shown.values()), list(shown), loc="outside right upper", fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=90)


def _spell(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "defaults"
