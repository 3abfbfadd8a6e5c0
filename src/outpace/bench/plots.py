"""Pictures of measurements: bars by arm, curves along an axis, and quality against parallelism."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outpace.errors import ConfigError

if TYPE_CHECKING:
    from outpace.bench.canvas import SweepPoint

__all__ = [
    "draw_fleet",
    "draw_growth",
    "draw_heads",
    "draw_paying",
    "draw_quality",
    "draw_scarce",
    "draw_searching",
    "draw_serving",
    "draw_speed",
    "draw_sweeps",
]

_COLOURS = ("#555555", "#1b6ca8", "#c9803a", "#3a8f5c", "#8a4fa3", "#b03a48")
_SWEEP_COLOURS = (
    *("#1b6ca8", "#c9803a", "#3a8f5c", "#8a4fa3", "#b03a48"),
    *("#555555", "#7fb2d9", "#a0a030", "#d06fa0", "#2aa198"),
)
_MARKS = "osv^D*Xph<>"
_LABELS = {"batch": "rows in a batch", "context": "tokens of context", "budget": "drafted nodes per step"}


def draw_speed(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw decoding speed by arm, one panel per set and temperature.

    Raises:
        ConfigError: matplotlib is not installed, or there is nothing to draw.
    """
    panels: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        panels.setdefault((row["set"], row["temperature"]), []).append(row)
    if not panels:
        raise ConfigError("There is nothing to draw.", "Measure at least one prompt.")
    columns = min(3, len(panels))
    height = 1.2 + 0.28 * max(len(group) for group in panels.values())
    lines = -(-len(panels) // columns)
    figure = _figure(5.2 * columns, height * lines)
    for number, ((name, temperature), group) in enumerate(panels.items()):
        _draw_panel(figure.add_subplot(lines, columns, number + 1), name, temperature, group)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def draw_growth(curves: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw tokens per second, and below it the ratio to plain decoding, along each axis; dots mark where it passes 1.

    Raises:
        ConfigError: matplotlib is not installed, or there is nothing to draw.
    """
    axes = list(dict.fromkeys(curve["axis"] for curve in curves))
    if not axes:
        raise ConfigError("There is nothing to draw.", "Measure at least one axis.")
    figure = _figure(5.2 * len(axes), 7.0)
    for number, axis in enumerate(axes):
        chosen = [curve for curve in curves if curve["axis"] == axis]
        speed = figure.add_subplot(2, len(axes), number + 1)
        ratio = figure.add_subplot(2, len(axes), len(axes) + number + 1, sharex=speed)
        _draw_curves(speed, ratio, chosen)
        speed.set_ylabel("tokens per second")
        ratio.set_ylabel("ratio to plain decoding")
        ratio.set_xlabel(_LABELS[axis])
        speed.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def draw_heads(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw how far trained drafters are followed by depth, and their speed against the tokens that a step writes.

    Raises:
        ConfigError: matplotlib is not installed, or there is nothing to draw.
    """
    if not rows:
        raise ConfigError("There is nothing to draw.", "Measure at least one drafter.")
    figure = _figure(10.4, 4.2)
    depths, speed = (figure.add_subplot(1, 2, number) for number in (1, 2))
    for number, row in enumerate(rows):
        style = {"color": _SWEEP_COLOURS[number % len(_SWEEP_COLOURS)], "marker": _MARKS[number % len(_MARKS)]}
        depths.plot(range(1, len(row["depths"]) + 1), row["depths"], label=row["name"], markersize=4, **style)
        speed.plot([row["tree"]], [row["speed"]], linestyle="", **style)
        speed.annotate(row["name"], (row["tree"], row["speed"]), xytext=(5, 4), textcoords="offset points", fontsize=8)
    depths.set(xlabel="depth", ylabel="drafts kept, of those that came so far", ylim=(0, 1))
    speed.set(xlabel="tokens written per step (tree)", ylabel="speed over plain decoding")
    speed.axhline(1, color="#999999", linewidth=0.8)
    depths.legend(fontsize=8)
    for axes in (depths, speed):
        _open(axes)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def draw_quality(points: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw BLEU against sentences per second, a colour per model and a mark per side.

    Raises:
        ConfigError: matplotlib is not installed, or there is nothing to draw.
    """
    if not points:
        raise ConfigError("There is nothing to draw.", "Measure at least one model.")
    figure = _figure(9.0, 5.0)
    axes = figure.add_subplot(1, 1, 1)
    models, sides = (list(dict.fromkeys(point[name] for point in points)) for name in ("model", "side"))
    for point in points:
        colour = _COLOURS[models.index(point["model"]) % len(_COLOURS)]
        mark, at = _MARKS[sides.index(point["side"]) % len(_MARKS)], (point["sentences_per_s"], point["bleu"])
        axes.plot([at[0]], [at[1]], color=colour, marker=mark, linestyle="")
        axes.annotate(point["side"], at, xytext=(5, 4), textcoords="offset points", fontsize=7, color=colour)
    for number, model in enumerate(models):
        axes.plot([], [], color=_COLOURS[number % len(_COLOURS)], marker="o", linestyle="", label=model)
    axes.set_xscale("log")
    axes.set(xlabel="sentences per second, one at a time", ylabel="BLEU")
    axes.legend(fontsize=8)
    _open(axes)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def draw_scarce(looks: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the held-out loss along the epochs, a curve per network, its lowest point marked; dotted: the training loss.

    Raises:
        ConfigError: matplotlib is not installed, or there is nothing to draw.
    """
    if not looks:
        raise ConfigError("There is nothing to draw.", "Train for an epoch at least.")
    figure = _figure(7.0, 4.5)
    axes = figure.add_subplot(1, 1, 1)
    for colour, arm in zip(_COLOURS[1:], dict.fromkeys(look["arm"] for look in looks), strict=False):
        curve = [look for look in looks if look["arm"] == arm]
        epochs, low = [look["epoch"] for look in curve], min(curve, key=lambda look: look["held"])
        axes.plot(epochs, [look["held"] for look in curve], color=colour, label=f"{arm}, held out")
        axes.plot(epochs, [look["train"] for look in curve], color=colour, linestyle=":", label=f"{arm}, trained on")
        axes.plot([low["epoch"]], [low["held"]], color=colour, marker="o")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set(xlabel="epochs", ylabel="nats per token (masked: an upper bound)")
    axes.legend(fontsize=8)
    _open(axes)
    figure.savefig(path, dpi=120)


def draw_searching(found: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw the share that searches get right along the positions that they read and wrote, a curve per search.

    Raises:
        ConfigError: matplotlib is not installed, or there is nothing to draw.
    """
    if not found:
        raise ConfigError("There is nothing to draw.", "Measure one search at least.")
    figure = _figure(6.4, 4.2)
    axes = figure.add_subplot(1, 1, 1)
    for number, name in enumerate(dict.fromkeys(one["search"] for one in found)):
        curve = sorted((one["positions"], 100 * one["right"]) for one in found if one["search"] == name)
        colour = _SWEEP_COLOURS[number % len(_SWEEP_COLOURS)]
        axes.plot([x for x, _ in curve], [y for _, y in curve], color=colour, marker="o", label=name)
    axes.set_xscale("log")
    axes.set(xlabel="positions per text", ylabel="right, %", title=title)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    _open(axes)
    figure.savefig(path, dpi=120)


def draw_serving(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw tokens per second and the time per token along the number of clients, a curve per side.

    Raises:
        ConfigError: matplotlib is not installed, or there is nothing to draw.
    """
    if not rows:
        raise ConfigError("There is nothing to draw.", "Measure the load.")
    figure = _figure(10.4, 4.2)
    speed, waiting = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    for side, colour in zip(dict.fromkeys(row["side"] for row in rows), _COLOURS * len(rows), strict=False):
        own = [row for row in rows if row["side"] == side]
        style = {"color": colour, "marker": "o", "markersize": 4, "label": side}
        speed.plot([row["clients"] for row in own], [row["tokens_per_s"] for row in own], **style)
        waiting.plot([row["clients"] for row in own], [row["token_ms"] for row in own], **style)
    for axes, label in ((speed, "tokens per second, all clients"), (waiting, "milliseconds per token, each client")):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("clients")
        axes.set_ylabel(label)
        axes.legend(fontsize=8)
        _open(axes)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def _draw_curves(speed: Any, ratio: Any, curves: Sequence[dict[str, Any]]) -> None:
    for curve, colour in zip(curves, _COLOURS * len(curves), strict=False):
        values = [point["value"] for point in curve["points"]]
        style = {"color": colour, "marker": "o", "markersize": 3, "label": curve["name"]}
        speed.plot(values, [point["tokens_per_s"] for point in curve["points"]], **style)
        if all(point["ratio"] is not None for point in curve["points"]):
            ratio.plot(values, [point["ratio"] for point in curve["points"]], **style)
        for at, _ in curve["crossings"]:
            ratio.plot([at], [1], color=colour, marker="o", markersize=8, fillstyle="none")
            ratio.annotate(
                f"{at:.3g}" if at < 1000 else f"{at:.0f}",
                (at, 1),
                xytext=(4, 6),
                textcoords="offset points",
                fontsize=8,
                color=colour,
            )
    ratio.axhline(1, color="#999999", linewidth=0.8)
    speed.set_ylim(bottom=0)
    ratio.set_ylim(bottom=0)
    for axes in (speed, ratio):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        _open(axes)


def draw_sweeps(points: Sequence[SweepPoint], sets: Sequence[str], title: str, path: Path) -> None:
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
            style = {"color": _SWEEP_COLOURS[index % len(_SWEEP_COLOURS)], "marker": _MARKS[index % len(_MARKS)]}
            places, quality = [p.tokens_per_forward for p in group], [p.quality for p in group]
            axes.plot(places, quality, label=arm, markersize=4, **style)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("tokens per forward")
        axes.set_ylabel("likelihood per token" if any(p.nll for p in points if p.set == name) else "share solved")
        axes.set_ylim(bottom=0)
        _open(axes)
    # One legend beside all panels: an arm looks the same in each.
    shown = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(shown.values()), list(shown), loc="outside right upper", fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=90)


def draw_paying(points: Sequence[SweepPoint], path: Path) -> None:
    """Draw quality along tokens per second, one panel per set, every point by its name; squares are causal arms.

    Raises:
        ConfigError: matplotlib is not installed, or there is nothing to draw.
    """
    sets = list(dict.fromkeys(point.set for point in points))
    if not sets:
        raise ConfigError("There is nothing to draw.", "Measure at least one point.")
    figure = _figure(6.4 * len(sets), 4.8)
    for number, name in enumerate(sets):
        axes = figure.add_subplot(1, len(sets), number + 1)
        for index, point in enumerate(point for point in points if point.set == name):
            speed, mark = point.tokens / point.seconds, "s" if point.method in ("auto", "autoregressive") else "o"
            axes.plot([speed], [point.quality], mark, color=_SWEEP_COLOURS[index % len(_SWEEP_COLOURS)])
            settings = ", ".join(f"{key}={value}" for key, value in point.settings.items())
            place = {"xytext": (4, 3), "textcoords": "offset points", "fontsize": 6}
            axes.annotate(f"{point.arm} {settings}", (speed, point.quality), **place)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("tokens per second")
        axes.set_ylabel("likelihood per token" if any(p.nll for p in points if p.set == name) else "share right")
        axes.set_ylim(bottom=0)
        _open(axes)
    figure.savefig(path, dpi=90)


def draw_fleet(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw, by number of replicas, seconds to the first token and between tokens, and the price of tokens.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure = _figure(13.0, 3.8)
    places = [row["replicas"] for row in rows]
    panels = {"ttft_s": "ms to the first token", "tpot_s": "ms between tokens"}
    for number, (name, label) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, 3, number)
        for share, colour in zip(("p50", "p90", "p99"), _COLOURS[1:], strict=False):
            axes.plot(places, [row[name][share] * 1e3 for row in rows], color=colour, marker="o", label=share)
        axes.set_ylabel(label)
        axes.set_yscale("log")
        axes.legend(fontsize=8)
    price = figure.add_subplot(1, 3, 3)
    price.plot(places, [row["price_per_million"] for row in rows], color=_COLOURS[1], marker="o")
    price.set_ylabel("price per million tokens")
    price.set_ylim(bottom=0)
    for axes in figure.axes:
        axes.set_xlabel("replicas")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        _open(axes)
    figure.suptitle(title)
    figure.savefig(path, dpi=90)


def _open(axes: Any) -> None:
    """Leave the frame of a panel open above and to the right."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("Plots need matplotlib.", "pip install 'outpace[plot]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_panel(axes: Any, name: str, temperature: float, group: Sequence[dict[str, Any]]) -> None:
    labels = [row["arm"] for row in group]
    speeds = [row["tokens_per_s"] for row in group]
    ours = {"compiled": "#1b6ca8", "eager": "#7fb2d9"}
    colours = ["#bbbbbb" if row["precision"] else ours.get(row["path"], "#c9803a") for row in group]
    axes.barh(range(len(group)), speeds, color=colours)
    axes.set_yticks(range(len(group)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("tokens per second")
    axes.set_xlim(0, 1.3 * max([*speeds, 1e-9]))
    axes.set_title(f"{name}, {'greedy' if temperature == 0 else f'T = {temperature:g}'}", fontsize=10)
    for place, row in enumerate(group):
        ratio = row["ratio_plain"]
        text = f" {row['tokens_per_s']:.0f}" + (f" ({ratio['median']:.2f}x)" if ratio else "")
        axes.text(row["tokens_per_s"], place, text, va="center", fontsize=7)
    _open(axes)
