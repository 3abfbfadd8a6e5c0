"""`outpace bench --canvas FOLDER`: all samplers, caches and lossless methods, and the causal model on the same axes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outpace.api.engine import LanguageModel, load
from outpace.bench.canvas import Arm, Point, Set, area, measure, stories, write_json
from outpace.bench.canvas_arms import cache_arms, causal_arms, lossless_arms, sampler_arms
from outpace.bench.canvas_report import (
    areas_table,
    closest,
    draw_curves,
    fixed_table,
    reference_of,
    rows_table,
)
from outpace.bench.inflate import inflate
from outpace.bench.machine import describe, lock
from outpace.errors import ConfigError
from outpace.models.opening import locate
from outpace.tasks import TASKS, test_examples

__all__ = ["CanvasOptions", "main", "merge", "run_canvas", "task_set"]

MOST = 8.0  # tokens per forward up to which areas are taken
OPEN = "stories"


@dataclass(frozen=True, slots=True, kw_only=True)
class CanvasOptions:
    """What is measured.

    Attributes:
        out: folder for the tables, the raw figures and the pictures.
        models: masked models.
        causal: causal models of the same size, by name or directory; the first judges likelihoods.
        sets: "stories" and names of tasks; empty = all.
        num: texts per set.
        max_tokens: most tokens of a story.
        inflate: parameters to inflate all models to first; 0 = as they are. Only the speed part is then run.
        repeats: times are the least of this many runs.
        threads: 0 = as they are.
        time_limit_s: start nothing new after these seconds; 0 = none.
    """

    out: Path
    models: tuple[str, ...] = ("stories-mask", "stories-block")
    causal: tuple[str, ...] = ("stories",)
    sets: tuple[str, ...] = ()
    num: int = 12
    max_tokens: int = 96
    inflate: int = 0
    repeats: int = 1
    threads: int = 0
    time_limit_s: float = 0.0

    def __post_init__(self) -> None:
        unknown = [name for name in self.sets if name != OPEN and name not in TASKS]
        if unknown:
            raise ConfigError(f"There is no set {unknown[0]!r}.", f"Sets: {OPEN}, {', '.join(TASKS)}.")


def run_canvas(options: CanvasOptions, tell: Callable[[str], None] = lambda text: None) -> list[Point]:
    """Measure, and write `canvas.md`, `canvas.json` and pictures into the folder.

    Raises:
        ConfigError, ModelError: something asked for does not exist.
        OutpaceError: another benchmark runs on this machine.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    with lock(), tempfile.TemporaryDirectory() as folder:
        models = {Path(name).name: _load(name, options, Path(folder)) for name in (*options.models, *options.causal)}
        options = dataclasses.replace(options, models=_names(options.models), causal=_names(options.causal))
        facts = {**describe(), "python": platform.python_version(), "threads": torch.get_num_threads()}
        points = _speed(options, models, tell) if options.inflate else _all(options, models, tell)
    kind = "canvas-speed" if options.inflate else "canvas"
    write_json(points, facts, options.out / f"{kind}.json")
    (options.out / f"{kind}.md").write_text(_page(points, options, facts), encoding="utf-8")
    if not options.inflate:
        _draw(points, options)
    return points


def _names(models: Sequence[str]) -> tuple[str, ...]:
    """Return names for tables: a directory's own."""
    return tuple(Path(name).name for name in models)


def _load(name: str, options: CanvasOptions, folder: Path) -> LanguageModel:
    directory = Path(locate(name)[0])
    if options.inflate:
        directory = inflate(directory, folder / directory.name, options.inflate)
    return load(directory, generation_config="none")


def _sets(options: CanvasOptions) -> list[Set]:
    names = options.sets or (OPEN, *TASKS)
    return [_set(name, options) for name in names]


def _set(name: str, options: CanvasOptions) -> Set:
    if name == OPEN:
        return stories(min(options.num, 12), options.max_tokens)
    return task_set(name, 2 * options.num)


def task_set(name: str, num: int) -> Set:
    """Return the first held-out examples of a task, as prompts to continue.

    Raises:
        ConfigError: there is no such task.
    """
    if name not in TASKS:
        raise ConfigError(f"There is no task {name!r}.", f"Tasks: {', '.join(TASKS)}.")
    examples = tuple(test_examples(name, num))
    return Set(name, tuple(example.prompt for example in examples), examples, 48 if name in _LONG else 32)


_LONG = ("countdown-3", "countdown-4", "sudoku")


def _all(options: CanvasOptions, models: dict[str, LanguageModel], tell: Callable[[str], None]) -> list[Point]:
    """Curves of every sampler on every set; caches and lossless methods on stories."""
    points: list[Point] = []
    began = time.perf_counter()
    judge = models[options.causal[0]]
    for item in _sets(options):
        arms: list[Arm] = []
        for name in options.models:
            is_full = models[name].target.capabilities.attention == "full"
            arms += [_named(arm, name) for arm in sampler_arms(name, is_full)]
            if item.name == OPEN:
                arms += [_named(arm, name) for arm in (*cache_arms(name, is_full), *lossless_arms(name))]
        for name in options.causal:
            arms += [_named(arm, Path(name).name) for arm in causal_arms(name)]
        for arm in arms:
            if options.time_limit_s and time.perf_counter() - began > options.time_limit_s:
                tell("The time limit is reached.")
                return points
            points += measure([arm], [item], models, judge, tell, options.repeats)
    return points


def _speed(options: CanvasOptions, models: dict[str, LanguageModel], tell: Callable[[str], None]) -> list[Point]:
    """Threshold sampling, lossless methods and the causal model, in turns, at a size where forwards are what costs."""
    items = [_set(name, options) for name in options.sets or (OPEN, "copy", "replace-index", "sudoku")]
    judge = models[options.causal[0]]
    arms: list[Arm] = []
    for name in options.models:
        is_block = models[name].target.capabilities.attention == "block"
        settings = tuple(
            {"threshold": value, "cache": "block" if is_block else "none"} for value in (0.9, 0.7, 0.6, 0.5, 0.4)
        )
        arms += [
            Arm(f"{name}: one per step", name, "masked-diffusion", ({},)),
            Arm(f"{name}: threshold", name, "fast-dllm", settings),
            Arm(f"{name}: FreeDave", name, "freedave", ({"copies": 2}, {"copies": 4})),
            Arm(f"{name}: SSD", name, "ssd", ({"copies": 4}, {"copies": 8})),
        ]
        if is_block:
            arms.append(Arm(f"{name}: one per step, uncached", name, "masked-diffusion", ({"cache": "none"},)))
    for name in options.causal:
        arms += [
            Arm("causal: plain", name, "autoregressive", ({},)),
            Arm("causal: opt-tree", name, "opt-tree", ({"draft": "stories-draft"},)),
            Arm("causal: block-draft", name, "block-draft", ({"draft": "stories-block"},)),
        ]
    return list(measure(arms, items, models, judge, tell, options.repeats))


def _named(arm: Arm, name: str) -> Arm:
    return dataclasses.replace(arm, name=f"{name}: {arm.name}")


def merge(files: Sequence[Path], out: Path) -> None:
    """Write one page and its pictures from the raw figures of several runs; of a set, the last run counts.

    Raises:
        ConfigError: a file holds no such figures.
    """
    points: list[Point] = []
    facts: dict[str, Any] = {}
    for file in files:
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            found = [Point.from_dict(item) for item in document["points"]]
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{file} holds no figures of this benchmark.", "Name canvas.json of earlier runs."
            ) from None
        sets = {point.set for point in found}
        points = [point for point in points if point.set not in sets] + found
        facts = document["facts"]
    masked = {point.model for point in points if not point.arm.partition(": ")[2].startswith("causal")}
    models = tuple(name for name in dict.fromkeys(point.model for point in points) if name in masked)
    causal = tuple(name for name in dict.fromkeys(point.model for point in points) if name not in masked)
    options = CanvasOptions(out=out, models=models, causal=causal)
    out.mkdir(parents=True, exist_ok=True)
    write_json(points, facts, out / "canvas.json")
    (out / "canvas.md").write_text(_page(points, options, facts), encoding="utf-8")
    _draw(points, options)


def _page(points: Sequence[Point], options: CanvasOptions, facts: dict[str, Any]) -> str:
    asked = f" --inflate {options.inflate}" if options.inflate else ""
    parts = [
        f"{facts.get('cpu', 'CPU')}, {facts['threads']} threads, torch {facts.get('torch', torch.__version__)}; "
        f"{options.num} texts per set (tasks: {2 * options.num}), batch 1, greedy. "
        f"`outpace bench --canvas FOLDER{asked}`\n"
    ]
    sets = list(dict.fromkeys(point.set for point in points))
    for name in options.models:
        own = [point for point in points if point.model == name]
        parts.append(f"### {Path(name).name}\n")
        parts += _stories_part(own, name) if OPEN in sets else []
        tasks = [item for item in sets if item != OPEN]
        for item in tasks if options.inflate else ():
            group = [point for point in own if point.set == item]
            parts.append(f"{item}:\n\n{rows_table(group, reference_of(group, item, name))}")
        if tasks and not options.inflate:
            parts.append(f"Share solved against places written per step:\n\n{fixed_table(own, name, tasks)}")
            curves = [point for point in own if _is_curve(point)]
            parts.append(f"Area under share solved, 1 to {MOST:g} tok/fwd:\n\n{areas_table(curves, name, tasks, MOST)}")
    causal = [point for point in points if point.model in options.causal]
    if causal:
        parts.append("### The causal model on the same axes\n")
        for item in sets:
            group = [point for point in causal if point.set == item]
            parts.append(f"{item}:\n\n{rows_table(group, group[0] if group else None, with_model=True)}")
    return "\n".join(parts)


def _stories_part(own: Sequence[Point], model: str) -> list[str]:
    stories_points = [point for point in own if point.set == OPEN]
    reference = reference_of(stories_points, OPEN, model)
    if reference is None:
        return []
    groups: dict[str, list[Point]] = {}
    for point in stories_points:
        groups.setdefault(point.arm, []).append(point)
    fast = [closest(group, reference) for arm, group in groups.items() if _is_curve(group[0])]
    rest = [point for point in stories_points if not _is_curve(point)]
    kept = [reference, *sorted((p for p in fast if p), key=lambda p: -p.tokens_per_forward)]
    areas = {arm: area(group, MOST) for arm, group in groups.items() if _is_curve(group[0])}
    listed = ", ".join(
        f"{arm.partition(': ')[2]} {value:.3f}" for arm, value in sorted(areas.items(), key=lambda item: -item[1])
    )
    title = "Stories: of each sampler the fastest setting within 2% of the reference's likelihood and entropy"
    return [
        f"{title} (the first line):\n\n{rows_table(kept, reference)}",
        f"Areas under likelihood per token, 1 to {MOST:g} tok/fwd: {listed}.\n",
        f"Caches and lossless methods on stories:\n\n{rows_table(rest, reference)}" if rest else "",
    ]


def _is_curve(point: Point) -> bool:
    """Whether a point belongs to a sampler's curve, not to the caches and lossless methods."""
    return not point.arm.partition(": ")[2].startswith(("threshold 0.9", "one per step", "FreeDave", "SSD"))


def _draw(points: Sequence[Point], options: CanvasOptions) -> None:
    sets = list(dict.fromkeys(point.set for point in points))
    for name in options.models:
        shown = [
            dataclasses.replace(point, arm=point.arm.partition(": ")[2] if point.model == name else point.arm)
            for point in points
            if (point.model == name or point.model in options.causal)
            and not point.arm.partition(": ")[2].startswith(("threshold 0.9", "one per step"))
        ]
        draw_curves(shown, sets, Path(name).name, options.out / f"{Path(name).name}.png")


def main() -> None:
    """Join the figures of several runs."""
    parser = argparse.ArgumentParser(description="Join the figures of several runs of outpace bench --canvas.")
    parser.add_argument("files", type=Path, nargs="+", help="canvas.json of each run")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    asked = parser.parse_args()
    merge(asked.files, asked.out)


if __name__ == "__main__":
    main()
