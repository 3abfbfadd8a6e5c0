"""Figures for the catalogue: every registered method that keeps the text, on the shipped prompt sets, beside plain."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from outpace.bench.arms import PLAIN, Arm, OurArm, Request, drafter_name, make_arms
from outpace.bench.options import BenchOptions
from outpace.bench.prompts import encode_prompt, read_prompts
from outpace.bench.report import Report, Skipped, Table, by_place, new_report, show_ratio
from outpace.bench.rows import make_rows
from outpace.bench.speed import measure, model_facts, prepared
from outpace.errors import ConfigError, OutpaceError, PluginError
from outpace.methods.registry import load_method, method_names
from outpace.models.opening import locate
from outpace.testing.respelled import respell
from outpace.types import Guarantee

__all__ = ["candidates", "run_catalogue"]

_FOREIGN, _DROPPED = "cross-vocab", 1500
_KEPT = (
    "method",
    "path",
    "set",
    "temperature",
    "prompts",
    "repetitive_prompts",
    "accepted_per_step",
    "tokens_per_forward",
    "tokens_per_s",
    "ratio_plain",
)
_COLUMNS = ("method", "accepted/step", "tok/fwd", "tok/s", "x plain [95%]", "exact")


def run_catalogue(options: BenchOptions, tell: Callable[[str], None] | None = None) -> Report:
    """Measure every method of the registry that fits, under its default settings, and write the files named.

    Args:
        options: as in `outpace.bench.run`; methods, peers and memory are not looked at, and only the first path is.
        tell: called with sentences on the progress.

    Raises:
        ConfigError, ModelError: something asked for does not exist.
        OutpaceError: another benchmark runs on this machine.
    """
    tell = tell or (lambda text: None)
    names, skipped = candidates()
    options = dataclasses.replace(options, methods=tuple(names), paths=options.paths[:1], peers=(), with_memory=False)
    prompts = [prompt for name in options.prompts for prompt in read_prompts(name, options.num_prompts)]
    with prepared(options, tell) as (directory, facts, _), tempfile.TemporaryDirectory() as folder:
        options, drafters = _with_foreign_drafter(options, directory, Path(folder))
        arms, misfits, lm = make_arms(options, directory, is_lenient=True)
        tasks = {prompt: encode_prompt(lm, prompt) for prompt in prompts}
        arms, broken = _that_run(arms, next(iter(tasks.values())), options.temperatures)
        skipped += [*misfits, *broken]
        everything: list[Arm] = list(arms)
        tell(f"{len(arms)} methods, {len(prompts)} prompts, {options.repeats} repetitions.")
        records, is_cut = measure(everything, tasks, options, lm.end_tokens, tell)
        rows = make_rows(records, everything, tasks, options, lm.end_tokens)
        model = model_facts(options.model, directory, lm.target.dtype)
    report = new_report(
        "catalogue",
        {name: getattr(options, name) for name in ("max_tokens", "num_prompts", "repeats", "seed")},
        facts,
        [_kept(row) for row in rows],
        tables=[Table(where, _COLUMNS, [_cells(row) for row in group]) for where, group in by_place(rows).items()],
        skipped=[Skipped(item.name.partition(" (")[0], item.reason) for item in skipped],
        notes=[
            str(facts["gpu_note"]),
            f"The time limit of {options.time_limit_s:.0f} s cut the repetitions short." if is_cut else "",
        ],
        model=model,
        drafters=drafters,
    )
    report.write(options.json, None, options.markdown)
    return report


def candidates() -> tuple[list[str], list[Skipped]]:
    """Return the registered methods that keep the text or its law, plain decoding first, and what is left out."""
    names, skipped = [PLAIN], []
    for name in method_names():
        try:
            guarantee = load_method(name)().guarantee
        except (PluginError, ConfigError) as error:
            skipped.append(Skipped(name, str(error)))
            continue
        if guarantee is Guarantee.APPROXIMATE:
            skipped.append(Skipped(name, "It may change the text, so its speed is no speed of that text."))
        elif name != PLAIN:
            names.append(name)
    return names, skipped


def _with_foreign_drafter(options: BenchOptions, directory: Path, folder: Path) -> tuple[BenchOptions, dict[str, str]]:
    """Give cross-vocab a drafter of another vocabulary, the method's reason to be; say what it is, by method."""
    given = options.options.get(_FOREIGN, {})
    if "draft" in given:
        return options, {_FOREIGN: str(given["draft"])}
    try:
        name = drafter_name(options, directory)
        draft = respell(Path(locate(name)[0]), folder / "respelled", _DROPPED)
    except ConfigError:
        return options, {}
    asked = {**options.options, _FOREIGN: {**given, "draft": str(draft)}}
    said = f"{Path(name).name} with other ids and without {_DROPPED} of its words, which it spells in pieces"
    return dataclasses.replace(options, options=asked), {_FOREIGN: said}


def _that_run(
    arms: Sequence[OurArm], ids: Sequence[int], temperatures: Sequence[float]
) -> tuple[list[OurArm], list[Skipped]]:
    """Try each arm once per temperature, and leave out those that lack something."""
    running, skipped = [], []
    for arm in arms:
        try:
            for temperature in temperatures:
                arm.run(Request(tuple(ids), 8, temperature, 0))
        except OutpaceError as error:
            skipped.append(Skipped(arm.name, f"{error} {error.hint}".strip()))
            continue
        except Exception as error:  # one method that breaks is named, and does not take the others' figures away
            skipped.append(Skipped(arm.name, f"It broke: {type(error).__name__}: {error}"))
            continue
        running.append(arm)
    return running, skipped


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the catalogue page shows of a row."""
    exactness = {name: row["exactness"].get(name) for name in ("equal", "of", "note")}
    return {**{name: row[name] for name in _KEPT}, "exactness": exactness}


def _cells(row: dict[str, Any]) -> list[str]:
    exact = row["exactness"]
    return [
        row["method"],
        f"{row['accepted_per_step']:.2f}",
        f"{row['tokens_per_forward']:.2f}",
        f"{row['tokens_per_s']:.0f}",
        show_ratio(row["ratio_plain"]),
        str(exact.get("note", "")) if exact["equal"] is None else f"{exact['equal']}/{exact['of']}",
    ]
