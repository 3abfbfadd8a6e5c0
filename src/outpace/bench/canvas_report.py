"""The tables and the pictures of the canvas benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outpace.bench.canvas import Point, area
from outpace.bench.plots import _figure

__all__ = ["curves_table", "draw_curves", "points_table"]

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


def curves_table(points: Sequence[Point], most: float) -> str:
    """Return a Markdown table: one line per set and arm, its area and its point at each setting."""
    lines = [
        f"| set | sampler | area to {most:g} | best quality | its tok/fwd | fastest within 2% of the reference: "
        "tok/fwd | positions/tok | ms/tok |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (name, arm), group in _groups(points).items():
        best = max(group, key=lambda point: point.quality)
        reference = _reference(points, name, group[0].model)
        close = [point for point in group if reference is None or _is_close(point, reference)]
        fast = max(close, key=lambda point: point.tokens_per_forward) if close else None
        shown = (
            ["-", "-", "-"]
            if fast is None
            else [
                f"{fast.tokens_per_forward:.2f} ({_spell(fast.settings)})",
                f"{fast.positions / max(fast.tokens, 1):.1f}",
                f"{1e3 * fast.seconds / max(fast.tokens, 1):.2f}",
            ]
        )
        lines.append(
            f"| {name} | {arm} | {area(group, most):.3f} | {best.quality:.3f} | {best.tokens_per_forward:.2f} | "
            + " | ".join(shown)
            + " |"
        )
    return "\n".join(lines) + "\n"


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


def points_table(points: Sequence[Point]) -> str:
    """Return a Markdown table with every point."""
    lines = [
        "| set | sampler | setting | quality | nll | entropy | tok/fwd | positions/tok | draft fwd/tok | ms/tok |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for point in points:
        tokens = max(point.tokens, 1)
        lines.append(
            f"| {point.set} | {point.arm} | {_spell(point.settings)} | {point.quality:.3f} | "
            f"{point.nll:.3f} | {point.entropy:.3f} | {point.tokens_per_forward:.2f} | "
            f"{point.positions / tokens:.1f} | {point.draft_forwards / tokens:.2f} | "
            f"{1e3 * point.seconds / tokens:.2f} |"
        )
    return "\n".join(lines) + "\n"


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
        if number == 0:
            axes.legend(fontsize=7)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _groups(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.set, point.arm), []).append(point)
    return groups


def _spell(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "defaults"
