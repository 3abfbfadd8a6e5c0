"""`outpace bench --canvas FOLDER`: all samplers, caches and lossless methods, and the causal model on the same axes."""

from __future__ import annotations

import dataclasses
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outpace.bench.canvas import Arm, Point, Set, measure, stories, write_json
from outpace.bench.canvas_arms import cache_arms, causal_arms, lossless_arms, sampler_arms
from outpace.bench.canvas_report import curves_table, draw_curves, points_table
from outpace.bench.machine import describe, lock
from outpace.engine import LanguageModel, load
from outpace.errors import ConfigError
from outpace.models.opening import locate
from outpace.tasks import TASKS, test_examples
from outpace.testing.inflate import inflate

__all__ = ["CanvasOptions", "run_canvas"]

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
        models = {name: _load(name, options, Path(folder)) for name in (*options.models, *options.causal)}
        facts = {**describe(), "python": platform.python_version(), "threads": torch.get_num_threads()}
        points = _speed(options, models, tell) if options.inflate else _all(options, models, tell)
    kind = "canvas-speed" if options.inflate else "canvas"
    write_json(points, facts, options.out / f"{kind}.json")
    (options.out / f"{kind}.md").write_text(_page(points, options, facts), encoding="utf-8")
    if not options.inflate:
        _draw(points, options)
    return points


def _load(name: str, options: CanvasOptions, folder: Path) -> LanguageModel:
    directory = Path(locate(name)[0])
    if options.inflate:
        directory = inflate(directory, folder / directory.name, options.inflate)
    return load(directory)


def _sets(options: CanvasOptions) -> list[Set]:
    names = options.sets or (OPEN, *TASKS)
    return [_set(name, options) for name in names]


def _set(name: str, options: CanvasOptions) -> Set:
    if name == OPEN:
        return stories(min(options.num, 12), options.max_tokens)
    examples = tuple(test_examples(name, 2 * options.num))
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
    item = stories(options.num, options.max_tokens)
    judge = models[options.causal[0]]
    arms: list[Arm] = []
    for name in options.models:
        is_block = models[name].target.capabilities.attention == "block"
        settings = tuple({"threshold": value, "cache": "auto"} for value in (0.9, 0.7, 0.6, 0.5, 0.4))
        arms += [
            Arm(f"{name}: one per step", name, "masked-diffusion", ({},)),
            Arm(f"{name}: threshold", name, "fast-dllm", settings),
            Arm(f"{name}: FreeDave", name, "freedave", ({"copies": 2}, {"copies": 4})),
            Arm(f"{name}: SSD", name, "ssd", ({"copies": 4},)),
        ]
        if is_block:
            arms.append(Arm(f"{name}: one per step, uncached", name, "masked-diffusion", ({"cache": "none"},)))
    for name in options.causal:
        arms += [
            Arm("causal: plain", name, "autoregressive", ({},)),
            Arm("causal: opt-tree", name, "opt-tree", ({"draft": "stories-draft"},)),
            Arm("causal: block-draft", name, "block-draft", ({"draft": "stories-block"},)),
        ]
    return list(measure(arms, [item], models, judge, tell, options.repeats))


def _named(arm: Arm, name: str) -> Arm:
    return dataclasses.replace(arm, name=f"{name}: {arm.name}")


def _page(points: Sequence[Point], options: CanvasOptions, facts: dict[str, Any]) -> str:
    asked = f" --inflate {options.inflate}" if options.inflate else ""
    return (
        f"Models {', '.join(options.models)}; causal {', '.join(Path(name).name for name in options.causal)}; "
        f"{facts.get('cpu', 'CPU')}, {facts['threads']} threads. `outpace bench --canvas FOLDER{asked}`\n\n"
        f"{curves_table(points, MOST)}\n### Every point\n\n{points_table(points)}"
    )


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
