"""How speed grows: tokens per second, and the ratio to plain decoding, against batch, context and drafted nodes.

Curves of replayed drafts isolate cost from text: the drafts are the plain text itself, with a set share of its tokens
left right, so that what is accepted is known and only what it costs is measured.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from outpace import kernels
from outpace.api.engine import LanguageModel
from outpace.bench.arms import with_drafter
from outpace.bench.options import GrowthOptions
from outpace.bench.prompts import read_prompts, set_names
from outpace.bench.replay import Replay
from outpace.bench.report import Report, Skipped, Table, new_report
from outpace.bench.rounds import in_turns
from outpace.bench.speed import model_facts, prepared
from outpace.bench.stats import median_ratio
from outpace.errors import OutpaceError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.registry import load_method
from outpace.models.loading import load_model, read_capabilities
from outpace.run.row import Row
from outpace.text.tokenizer import Tokenizer
from outpace.types import Outcome

__all__ = ["Curve", "CurvePoint", "crossings", "run_growth"]

_AXES = {"batch": "rows in a batch", "context": "tokens of context", "budget": "drafted nodes per step"}


@dataclass(slots=True)
class CurvePoint:
    """One value of an axis for one curve: the medians of its repetitions.

    Attributes:
        value: of the axis.
        tokens_per_s: of all rows together.
        tokens_per_step: per row.
        ratio: to plain decoding, over pairs; None for plain decoding itself.
    """

    value: int
    tokens_per_s: float
    tokens_per_step: float
    ratio: float | None


@dataclass(slots=True)
class Curve:
    """One way of drafting along an axis.

    Attributes:
        axis: "batch", "context" or "budget".
        name: what the legend says.
        points: by rising value; values that do not fit are left out.
        crossings: values at which the ratio to plain decoding passes 1, and whether speculation stops paying there.
    """

    axis: str
    name: str
    points: list[CurvePoint] = field(default_factory=list)
    crossings: list[tuple[float, bool]] = field(default_factory=list)


def run_growth(options: GrowthOptions, tell: Callable[[str], None] | None = None) -> Report:
    """Measure the curves and write the files that the options name.

    Args:
        options: what to measure.
        tell: called with sentences on the progress.

    Raises:
        ConfigError, ModelError: something asked for does not exist.
        OutpaceError: another benchmark runs on this machine.
    """
    tell = tell or (lambda text: None)
    with prepared(options, tell) as (directory, facts, _):
        growth = _Growth(options, directory)
        curves = [curve for axis in options.axes for curve in growth.curves(axis, tell)]
        model = model_facts(options.model, directory, growth.lm.target.dtype)
    report = new_report(
        "growth",
        options,
        facts,
        [dataclasses.asdict(curve) for curve in curves],
        tables=[_table(axis, curves) for axis in options.axes],
        skipped=list(growth.skipped.values()),
        notes=[*_notes(options, growth.trained), *_verdicts(curves), str(facts["gpu_note"])],
        model=model,
        trained_positions=growth.trained,
    )
    report.write(options.json, options.plot, options.markdown)
    return report


class _Growth:
    """The model, its prompts, and the measurement of one point."""

    def __init__(self, options: GrowthOptions, directory: Path) -> None:
        self.options, self.directory = options, directory
        self.skipped: dict[str, Skipped] = {}
        self.trained = read_capabilities(directory).max_positions
        contexts = options.contexts if "context" in options.axes else ()
        # Costs depend on positions, not on what is written there: more of them than were trained will do.
        budget = max(options.budget, *options.budgets)
        positions = max(self.trained, max((options.context, *contexts)) + self._most(budget))
        target = load_model(
            directory,
            options.dtype,
            options.device,
            context=positions,
            kernels=kernels if options.is_compiled else None,
        )
        self.lm = LanguageModel(target, None, name=options.model, dtype=options.dtype, device=options.device)
        self.lm.is_compiled = options.is_compiled
        tokenizer = Tokenizer.from_directory(directory)
        texts = [prompt.text for name in set_names() for prompt in read_prompts(name)]
        self.ids = [token for text in texts for token in tokenizer.encode(text)]

    def curves(self, axis: str, tell: Callable[[str], None]) -> list[Curve]:
        """Return all curves along an axis, plain decoding first."""
        options = self.options
        values = {"batch": options.batches, "context": options.contexts, "budget": options.budgets}[axis]
        found: dict[str, Curve] = {}
        for value in sorted(values):
            tell(f"{axis} {value}.")
            at = {"batch": options.batch, "context": options.context, "budget": options.budget, axis: value}
            for name, point in self._points(value, **at).items():
                found.setdefault(name, Curve(axis, name)).points.append(point)
        for curve in found.values():
            curve.crossings = crossings([(p.value, p.ratio) for p in curve.points if p.ratio is not None])
        return list(found.values())

    def _points(self, value: int, batch: int, context: int, budget: int) -> dict[str, CurvePoint]:
        """Measure every curve at one place, sides in turns."""
        prompts = [self._prompt(row, context) for row in range(batch)]
        texts = self._run(Autoregressive(), prompts, self._most(budget))[2]  # also warms up
        methods = self._methods(dict(zip(map(tuple, prompts), texts, strict=True)), context, budget)
        sides = {name: partial(self._run, method, prompts) for name, method in methods.items()}
        found = in_turns(sides, self.options.repeats, warm_ups=0)
        rates = {name: [rate for rate, _, _ in runs] for name, runs in found.items()}
        return {
            name: CurvePoint(
                value,
                statistics.median(own),
                found[name][-1][1],
                None if name == "plain" else median_ratio(own, rates["plain"]),
            )
            for name, own in rates.items()
        }

    def _methods(self, texts: Mapping[tuple[int, ...], Sequence[int]], context: int, budget: int) -> dict[str, Method]:
        vocab_size = self.lm.target.capabilities.vocab_size
        found: dict[str, Method] = {"plain": Autoregressive()}
        for share in self.options.shares:
            found[f"replay, {share:.0%} right"] = Replay(texts, share, budget, vocab_size)
        if context + self._most(budget) <= self.trained:
            for text in self.options.methods:
                try:
                    found[text.format(budget="k")] = self._method(text.format(budget=budget))
                except OutpaceError as error:
                    self.skipped.setdefault(text, Skipped(text, f"{error} {error.hint}".strip()))
        return found

    def _method(self, text: str) -> Method:
        """Return a method that runs here, or raise why it does not."""
        name, *parts = text.split(":")
        method = load_method(name).from_settings(dict(part.split("=", 1) for part in parts))
        method = with_drafter(method, self.options, self.directory)
        self._run(method, [self._prompt(0, 8)], 4)
        return method

    def _most(self, width: int) -> int:
        """Return tokens enough that a full window has room until the last step that is timed."""
        return self.options.max_tokens + 2 * (width + 1)

    def _prompt(self, row: int, length: int) -> list[int]:
        """Return a stretch of the shipped prompts; every row begins elsewhere."""
        start = row * 97 % len(self.ids)
        return [self.ids[(start + i) % len(self.ids)] for i in range(length)]

    def _run(self, method: Method, prompts: list[list[int]], enough: int = 0) -> tuple[float, float, list[list[int]]]:
        """Write until every row has `enough` tokens (0 = as the options say); none ends before the others.

        Returns:
            Tokens per second of all rows, tokens per step of a row, and the texts.
        """
        enough = enough or self.options.max_tokens
        written = [0]

        def watch(rows: Sequence[Row], outcome: Outcome) -> None:
            del outcome
            written[0] = min(len(row.tokens) - row.num_prompt for row in rows)

        results = self.lm.generate(
            prompts,
            method=method,
            max_tokens=enough + 2 * (method.needs.width + 1),
            seed=self.options.seed,
            ignore_eos=True,
            watch=watch,
            is_cancelled=lambda: written[0] >= enough,
        )
        tokens = [list(result.tokens) for result in results]
        total = sum(map(len, tokens))
        steps = sum(result.usage.num_steps for result in results)
        return total / results[0].timing["decode_s"], total / steps, tokens


def crossings(points: Sequence[tuple[int, float]]) -> list[tuple[float, bool]]:
    """Return where the ratio passes 1, between two points on a logarithmic axis, and whether it falls there."""
    found = []
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if (y0 >= 1) != (y1 >= 1):
            share = (1 - y0) / (y1 - y0)
            found.append((math.exp(math.log(x0) + share * (math.log(x1) - math.log(x0))), y0 >= 1))
    return found


def _notes(options: GrowthOptions, trained: int) -> list[str]:
    fixed = f"batch {options.batch}, context {options.context}, {options.budget} drafts per step"
    return [
        f"What does not vary: {fixed}; at least {options.max_tokens} tokens per row, greedy.",
        f"The model was trained on {trained} positions; beyond them only replayed drafts are measured, and only costs "
        "mean anything.",
        "Replayed drafts: the plain text, a set share of its tokens left right; a draft counts only behind right ones.",
    ]


def _verdicts(curves: Sequence[Curve]) -> list[str]:
    """Say in a sentence per curve where speculation stops paying."""
    said = []
    for curve in curves:
        ratios = [point.ratio for point in curve.points if point.ratio is not None]
        if not ratios:
            continue
        passed = [
            f"{'stops' if falls else 'starts'} paying at about {at:.{1 if at < 10 else 0}f}"
            for at, falls in curve.crossings
        ]
        whole = "pays everywhere" if min(ratios) >= 1 else "pays nowhere"
        said.append(f"{_AXES[curve.axis].capitalize()}, {curve.name}: {', '.join(passed) if passed else whole}.")
    return said


def _table(axis: str, curves: Sequence[Curve]) -> Table:
    chosen = [curve for curve in curves if curve.axis == axis]
    values = sorted({point.value for curve in chosen for point in curve.points})
    cells = [[str(value), *(_cell(curve, value) for curve in chosen)] for value in values]
    title = f"Tokens per second (x plain, tokens per step of a row) against {_AXES[axis]}"
    return Table(title, (_AXES[axis], *(curve.name for curve in chosen)), cells)


def _cell(curve: Curve, value: int) -> str:
    point = next((point for point in curve.points if point.value == value), None)
    if point is None:
        return ""
    speed = f"{point.tokens_per_s:.1f}"
    return speed if point.ratio is None else f"{speed} ({point.ratio:.2f}x, {point.tokens_per_step:.2f})"
