"""`outpace bench --canvas FOLDER`: all samplers, caches and lossless methods, and the causal model on the same axes."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from outpace.api.engine import LanguageModel, load
from outpace.bench.canvas import Set, Sweep, SweepPoint, area, measure, stories, task_set
from outpace.bench.canvas_report import MOST, OPEN, canvas_page, draw_canvases
from outpace.bench.canvas_sweeps import cache_sweeps, causal_sweeps, lossless_sweeps, sampler_sweeps
from outpace.bench.command import new_parser, run_command
from outpace.bench.inflate import inflate
from outpace.bench.machine import describe, lock
from outpace.bench.report import new_report, read_report
from outpace.errors import ConfigError
from outpace.models.opening import locate
from outpace.tasks import TASKS

__all__ = ["CanvasOptions", "main", "merge", "run_canvas"]


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


def run_canvas(options: CanvasOptions, tell: Callable[[str], None] = lambda text: None) -> list[SweepPoint]:
    """Measure, and write `canvas.md`, `canvas.json` and pictures into the folder.

    Raises:
        ConfigError, ModelError: something asked for does not exist.
        OutpaceError: another benchmark runs on this machine.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    with lock(), tempfile.TemporaryDirectory() as folder:
        facts = describe()
        models = {Path(name).name: _load(name, options, Path(folder)) for name in (*options.models, *options.causal)}
        options = dataclasses.replace(options, models=_names(options.models), causal=_names(options.causal))
        points = _speed(options, models, tell) if options.inflate else _all(options, models, tell)
    _write(points, options, facts)
    return points


def _write(points: Sequence[SweepPoint], options: CanvasOptions, machine: Mapping[str, Any]) -> None:
    """Write the raw figures, the page and the pictures."""
    kind = "canvas-speed" if options.inflate else "canvas"
    groups: dict[tuple[str, str], list[SweepPoint]] = {}
    for point in points:
        groups.setdefault((point.set, point.arm), []).append(point)
    areas = [{"set": name, "arm": arm, "area": area(group, MOST)} for (name, arm), group in groups.items()]
    rows = [point.to_dict() for point in points]
    new_report(kind, options, machine, rows, tables=(), areas=areas).write(options.out / f"{kind}.json")
    facts = {**machine, "num": options.num, "inflate": options.inflate}
    page = canvas_page(points, options.models, options.causal, facts)
    (options.out / f"{kind}.md").write_text(page, encoding="utf-8")
    if not options.inflate:
        draw_canvases(points, options.models, options.causal, options.out)


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


def _all(options: CanvasOptions, models: dict[str, LanguageModel], tell: Callable[[str], None]) -> list[SweepPoint]:
    """Curves of every sampler on every set; caches and lossless methods on stories."""
    points: list[SweepPoint] = []
    began = time.perf_counter()
    judge = models[options.causal[0]]
    for item in _sets(options):
        sweeps: list[Sweep] = []
        for name in options.models:
            is_full = models[name].target.capabilities.attention == "full"
            sweeps += [_named(sweep, name) for sweep in sampler_sweeps(name, is_full)]
            if item.name == OPEN:
                sweeps += [_named(sweep, name) for sweep in (*cache_sweeps(name, is_full), *lossless_sweeps(name))]
        for name in options.causal:
            sweeps += [_named(sweep, Path(name).name) for sweep in causal_sweeps(name)]
        for sweep in sweeps:
            if options.time_limit_s and time.perf_counter() - began > options.time_limit_s:
                tell("The time limit is reached.")
                return points
            points += measure([sweep], [item], models, judge, tell, options.repeats)
    return points


def _speed(options: CanvasOptions, models: dict[str, LanguageModel], tell: Callable[[str], None]) -> list[SweepPoint]:
    """Threshold sampling, lossless methods and the causal model, in turns, at a size where forwards are what costs."""
    items = [_set(name, options) for name in options.sets or (OPEN, "copy", "replace-index", "sudoku")]
    judge = models[options.causal[0]]
    sweeps: list[Sweep] = []
    for name in options.models:
        is_block = models[name].target.capabilities.attention == "block"
        settings = tuple(
            {"threshold": value, "cache": "block" if is_block else "none"} for value in (0.9, 0.7, 0.6, 0.5, 0.4)
        )
        sweeps += [
            Sweep(f"{name}: one per step", name, "masked-diffusion", ({},)),
            Sweep(f"{name}: threshold", name, "fast-dllm", settings),
            Sweep(f"{name}: FreeDave", name, "freedave", ({"copies": 2}, {"copies": 4})),
            Sweep(f"{name}: SSD", name, "ssd", ({"copies": 4}, {"copies": 8})),
        ]
        if is_block:
            sweeps.append(Sweep(f"{name}: one per step, uncached", name, "masked-diffusion", ({"cache": "none"},)))
    for name in options.causal:
        sweeps += [
            Sweep("causal: plain", name, "autoregressive", ({},)),
            Sweep("causal: opt-tree", name, "opt-tree", ({"draft": "stories-draft"},)),
            Sweep("causal: block-draft", name, "block-draft", ({"draft": "stories-block"},)),
        ]
    return list(measure(sweeps, items, models, judge, tell, options.repeats))


def _named(sweep: Sweep, name: str) -> Sweep:
    return dataclasses.replace(sweep, name=f"{name}: {sweep.name}")


def merge(files: Sequence[Path], out: Path) -> None:
    """Write one page and its pictures from the raw figures of several runs; of a set, the last run counts.

    Raises:
        ConfigError: a file holds no such figures.
    """
    points: list[SweepPoint] = []
    facts: Mapping[str, Any] = {}
    for file in files:
        report = read_report(file)
        try:
            found = [SweepPoint.from_dict(item) for item in report.rows]
        except (KeyError, TypeError):
            raise ConfigError(f"{file} holds no canvases' figures.", "Name canvas.json of earlier runs.") from None
        sets = {point.set for point in found}
        points = [point for point in points if point.set not in sets] + found
        facts = report.document["machine"]
    masked = {point.model for point in points if not point.arm.partition(": ")[2].startswith("causal")}
    models = tuple(name for name in dict.fromkeys(point.model for point in points) if name in masked)
    causal = tuple(name for name in dict.fromkeys(point.model for point in points) if name not in masked)
    out.mkdir(parents=True, exist_ok=True)
    _write(points, CanvasOptions(out=out, models=models, causal=causal), facts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Join the figures of several runs; return the exit status."""
    parser = new_parser("canvas_run", "Join the figures of several runs of outpace bench --canvas.")
    parser.add_argument("files", type=Path, nargs="+", help="canvas.json of each run")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    return run_command(parser, lambda given: merge(given.files, given.out), arguments)


if __name__ == "__main__":
    sys.exit(main())
