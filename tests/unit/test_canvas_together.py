"""A step of all rows at once against the step of one row, and rules over arrays against rules said in plain loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from outpace.canvas import POLICIES, Canvas, CanvasRow, FixedBlocks, Ranked, Reading, advance, make_policy, read
from outpace.canvas.parts import Parts
from outpace.canvas.reading import Readings, read_all
from outpace.canvas.rules.filtered import FEATURES, Filtered, PlaceFilter
from outpace.canvas.rules.orders import ORDERS
from outpace.canvas.rules.paced import Paced
from outpace.canvas.rules.parallel import EntropyBounded, Factor
from outpace.canvas.rules.position import Position
from outpace.canvas.rules.prophet import EarlyCommit
from outpace.canvas.rules.rule import Rule
from outpace.canvas.rules.spread import Spread
from outpace.canvas.table import FAR, CanvasRows, RowTable
from outpace.canvas.together import advance_all, decide_all, propose_all, serves
from outpace.canvas.window import lay_window, propose_windows
from outpace.methods.diffusion.base import CanvasMethod
from outpace.methods.diffusion.eb_sampler import EbSampler
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.run.row import Row
from outpace.sampling import Sampler, Sampling, measures, row_key
from outpace.testing.canvas_checks import toy_canvas
from outpace.testing.world import PROMPTS, drive, make_run
from outpace.types import FinishReason

VOCAB, MASK, ENDS = 12, 11, (3, 5)
FILTER = PlaceFilter(*(np.random.default_rng(3).normal(size=size) for size in ((4, len(FEATURES) + 1), 5)), VOCAB)
BACKGROUND = np.linspace(0.0, 0.3, VOCAB)
RULES: list[Rule] = [
    *(Ranked(order) for order in ORDERS),
    Ranked("margin", 3, 0.4),
    Ranked("confidence", 2, 2.0, 0.7),
    Paced(Ranked("entropy"), 3),
    Spread(Ranked(), 5),
    Factor(0.9),
    EntropyBounded(1.5),
    EntropyBounded(0.8, "margin"),
    Position(0.1, 1.2, 2, BACKGROUND),
    EarlyCommit(Ranked("margin"), (2.5, 2.0, 1.0)),
    EarlyCommit(Spread(Ranked(), 5), (2.0, math.inf, 1.5), is_whole=True),
    Filtered(0.4),
    Filtered(0.55, FILTER),
]
CANVASES = [
    Canvas(MASK),
    Canvas(MASK, logits_shift=True, ahead=2, ends_last=True),
    Canvas(MASK, 4),
    Canvas(MASK, 4, logits_shift=True),
    Canvas(MASK, 4, has_causal_text=True),
]


def random_rows(generator: np.random.Generator, parts: Parts) -> list[CanvasRow]:
    """Rows of unequal lengths, some with given pieces, some without an end."""
    rows = []
    for index in range(5):
        text = generator.integers(0, MASK, 3 + index).tolist()
        rest = [-1] * int(generator.integers(6, 12))
        is_filled_in = index == 2
        if is_filled_in:
            rest[2], rest[3], rest[-1] = 7, 8, 2
        row = CanvasRow.begin(text, rest, parts.canvas, () if is_filled_in else ENDS)
        rows.append(replace(row, memo=parts.rule.start(row, parts.canvas, parts.schedule)))
    return rows


def same_row(one: CanvasRow, other: CanvasRow) -> None:
    for name in ("prompt", "base", "end", "ends", "visit", "step", "age"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("tokens", "given", "held"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=1e-12)


def random_logits(generator: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Laws with ties within and between places, and with forbidden tokens."""
    logits = torch.from_numpy(generator.integers(-3, 4, shape)).to(dtype)
    logits[torch.from_numpy(generator.random(shape) < 0.1)] = float("-inf")
    logits[..., 0] = logits[..., 0].clamp(min=-3)  # no law forbids all
    logits[..., MASK] = float("-inf")
    return logits


KINDS = pytest.mark.parametrize("canvas", CANVASES, ids=["full", "shift", "block", "block-shift", "causal-block"])


@KINDS
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize(("temperature", "dtype"), [(0.0, torch.float64), (0.0, torch.float32), (0.9, torch.float32)])
def test_all_rows_at_once_go_where_each_goes_alone(
    rule: Rule, canvas: Canvas, temperature: float, dtype: torch.dtype
) -> None:
    policy = make_policy("block" if canvas.block_size else "none")
    walk(Parts(canvas, rule, FixedBlocks(4), policy), temperature, dtype)


@KINDS
@pytest.mark.parametrize("refresh", [0, 3])
@pytest.mark.parametrize("cache", POLICIES)
def test_caches_of_all_rows_hold_what_each_holds_alone(cache: str, refresh: int, canvas: Canvas) -> None:
    for radius in (0, 2):
        policy = make_policy(cache, refresh, radius)
        walk(Parts(canvas, Ranked("random", 2), FixedBlocks(4), policy), 0.0, torch.float64)


def walk(parts: Parts, temperature: float, dtype: torch.dtype) -> None:
    """Let rows write themselves to their ends, at once and each alone, and compare after every step."""
    generator, canvas = np.random.default_rng(7), parts.canvas
    assert serves(parts)
    rows = random_rows(generator, parts)
    rows = [replace(row, held=np.arange(canvas.floor(row.base, row.prompt))) for row in rows]
    samplers = [Sampler(Sampling(temperature=temperature), [row_key(3, index)]) for index in range(len(rows))]
    for _ in range(40):
        if not rows:
            return
        table = RowTable.of(rows)
        assert table is not None
        device = torch.device("cpu")
        windows = [lay_window(row, parts) for row in rows]
        proposal, plain = propose_all(table, parts, device, ""), propose_windows(windows, device, "")
        assert proposal.length == plain.length
        for ours, theirs in ((proposal.tokens, plain.tokens), (proposal.position, plain.position)):
            assert ours is not None
            assert torch.equal(ours, theirs)  # type: ignore[arg-type]
        assert (proposal.visible is None) == (plain.visible is None) == (not canvas.has_causal_text)
        if canvas.has_causal_text:
            assert torch.equal(proposal.visible, plain.visible)  # type: ignore[arg-type]
        assert proposal.ask is not None
        assert torch.equal(proposal.ask, plain.ask)  # type: ignore[arg-type]
        logits = random_logits(generator, (*proposal.ask.shape, VOCAB), dtype)
        sampler = Sampler(samplers[0].settings, [one.keys[0] for one in samplers])
        reading = read_all(logits.clone(), proposal.carry.places, table, canvas, sampler)
        steps = advance_all(proposal.carry, reading, parts)
        moved = []
        for index, (row, window) in enumerate(zip(rows, windows, strict=True)):
            own = logits[index, : len(window.asked)].clone()
            known = measures.measure(logits)
            figures = None if known is None else known[index, : len(window.asked)]
            alone = advance(row, read(own, window.asked, row, canvas, samplers[index], None, figures), window, parts)
            same_row(steps[index].row, alone.row)
            assert steps[index].slots.tolist() == alone.slots.tolist()
            moved.append(alone.row)
        decision = decide_all(table, steps)
        for index, (before, after) in enumerate(zip(rows, moved, strict=True)):
            written = decision.tokens[index, : int(decision.num[index])]
            assert written.tolist() == after.tokens[before.base : after.base].tolist()
        stay = [index for index, row in enumerate(moved) if row.base < row.live()]
        rows, samplers = [moved[index] for index in stay], [samplers[index] for index in stay]
    raise AssertionError("The rows never end.")


def test_a_plain_canvas_forgets_what_was_held_at_first() -> None:
    parts = Parts(Canvas(MASK, 4), Ranked(), FixedBlocks(4), make_policy("none"))
    rows = [replace(row, held=np.arange(2)) for row in random_rows(np.random.default_rng(5), parts)]
    table = RowTable.of(rows)
    assert table is not None
    asked = propose_all(table, parts, torch.device("cpu"), "").carry
    logits = random_logits(np.random.default_rng(5), (*asked.places.shape, VOCAB), torch.float64)
    sampler = Sampler(Sampling(), [row_key(3, index) for index in range(len(rows))])
    steps = advance_all(asked, read_all(logits, asked.places, table, parts.canvas, sampler), parts)
    assert [step.slots.tolist() for step in steps] == [[]] * len(rows)


def figures(seed: int) -> tuple[Reading, RowTable]:
    """What is said of three rows: ties, laws without a figure, and fewer places than others have."""
    generator = np.random.default_rng(seed)
    rows = [CanvasRow.begin([1, 2], [-1] * size, Canvas(MASK), ENDS) for size in (9, 6, 9)]
    rows = [replace(row, end=2 + size, step=1) for row, size in zip(rows, (9, 4, 7), strict=True)]
    table = RowTable.of(rows)
    assert table is not None
    places = np.where(np.arange(9) < np.array([[9], [6], [9]]), np.arange(2, 11), FAR)
    sampler = Sampler(Sampling(), [row_key(seed, index) for index in range(3)])
    tokens = generator.integers(0, MASK, places.shape)
    reading = Readings(places, tokens, torch.zeros(3, 9, VOCAB), sampler, 0, visits=[0, 1, 2])
    chances = generator.integers(0, 5, places.shape) / 5
    chances[0, 3] = chances[2, 0] = math.nan
    reading.__dict__["confidence"] = chances
    reading.__dict__["top_two"] = np.stack([chances, chances * generator.integers(0, 2, places.shape)], -1)
    reading.__dict__["entropy"] = generator.integers(0, 5, places.shape) / 4
    reading.entropy[1, 2] = math.inf
    return reading, table


def by_hand(rule: Rule, reading: Reading, row: int, end: int, prompt: int) -> list[int]:
    """Return which places one rule writes, said in loops over single places."""
    places = [at for at, place in enumerate(reading.places[row].tolist()) if place < end]

    def value(at: int, order: str) -> float:
        best, next_best = reading.top_two[row, at]
        known = {"confidence": reading.confidence[row, at], "margin": best - next_best}
        known |= {"entropy": -reading.entropy[row, at], "left": -float(at), "random": reading.noise()[row, at]}
        found = float(known[order])
        return -math.inf if math.isnan(found) else found

    def ordered(score: Callable[[int], float]) -> list[int]:
        return sorted(places, key=lambda at: (-score(at), at))

    if isinstance(rule, Ranked):
        best = ordered(lambda at: value(at, rule.order))[: rule.per_step]
        return sorted({*best, *(at for at in places if reading.confidence[row, at] >= rule.threshold <= 1)})
    if isinstance(rule, Factor):
        order = ordered(lambda at: value(at, "confidence"))
        count = 0
        while count < len(order) and value(order[count], "confidence") >= 1 - rule.factor / (count + 2):
            count += 1
        return sorted(order[: max(count, 1)])
    assert isinstance(rule, EntropyBounded)
    order, spent, most, taken = ordered(lambda at: value(at, rule.order)), 0.0, 0.0, []
    for at in order:
        entropy = float(reading.entropy[row, at])
        spent, most = spent + entropy, max(most, entropy)
        if not taken or spent - most <= rule.gamma:
            taken.append(at)
    return sorted(taken)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "rule",
    [
        *(Ranked(order, count) for order in ORDERS for count in (1, 3, 20)),
        Ranked("left", 1, 0.8),
        *(Factor(factor) for factor in (0.0, 0.7, 1.5, 9.0)),
        *(EntropyBounded(gamma, order) for gamma in (0.0, 1.0, 3.0) for order in ("entropy", "margin")),
    ],
    ids=repr,
)
def test_rules_over_arrays_are_those_said_in_loops(rule: Rule, seed: int) -> None:
    reading, table = figures(seed)
    with np.errstate(invalid="ignore"):
        writes = rule.writes(reading, table, table.memo)
    for row in range(3):
        expected = by_hand(rule, reading, row, int(table.end[row, 0]), 2)
        assert np.flatnonzero(writes[row]).tolist() == expected, f"row {row}"


def test_a_row_without_a_law_ends_and_the_others_go_on() -> None:
    parts = Parts(Canvas(MASK), Ranked(), FixedBlocks(4), make_policy("none"))
    rows = random_rows(np.random.default_rng(1), parts)
    table = RowTable.of(rows)
    assert table is not None
    asked = propose_all(table, parts, torch.device("cpu"), "").carry
    logits = random_logits(np.random.default_rng(1), (*asked.places.shape, VOCAB), torch.float32)
    logits[1, 2, 4] = float("nan")
    sampler = Sampler(Sampling(), [row_key(3, index) for index in range(len(rows))])
    steps = advance_all(asked, read_all(logits, asked.places, table, parts.canvas, sampler), parts)
    assert [step is None for step in steps] == [False, True, False, False, False]
    decision = decide_all(table, steps)
    assert decision.tokens[1, : int(decision.num[1])].tolist() == [-1]


def test_a_law_that_breaks_ends_its_row_alone() -> None:
    class Breaks(type(toy_canvas("full", False))):  # type: ignore[misc]
        def score(self, tokens, *given, **named):  # type: ignore[no-untyped-def]
            scores = super().score(tokens, *given, **named)
            scores.logits[tokens[:, 0] == PROMPTS[1][0]] = float("nan")
            return scores

    rows = [Row(list(text), len(text), row_key(1, index), 8) for index, text in enumerate(PROMPTS[:2])]
    assert PROMPTS[0][0] != PROMPTS[1][0]
    drive(make_run(MaskedDiffusion(), Sampling(), target=Breaks(attention="full", block_size=4)), rows)
    assert [row.finish for row in rows] == [FinishReason.LENGTH, FinishReason.ERROR]
    assert rows[1].written == []


@pytest.mark.parametrize(
    "method", [MaskedDiffusion(order="margin", per_step=2), EbSampler(gamma=0.6), MaskedDiffusion(end="last")]
)
def test_runs_write_what_rows_stepping_singly_write(method: CanvasMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(settings: Sampling) -> list[tuple[list[int], list[float], int]]:
        rows = [Row(list(text), len(text), row_key(1, i), 9, ENDS) for i, text in enumerate(PROMPTS[:3])]
        rows[1].canvas = [-1, 7, -1, -1, 8, 2, -1, -1, -1]
        target = toy_canvas("block", True)
        drive(make_run(method, settings, target=target, record=("log_probs",)), rows)
        return [(row.written, [round(value, 9) for value in row.log_probs], row.usage.num_steps) for row in rows]

    for settings in (Sampling(), Sampling(temperature=0.8, top_k=4)):
        together = write(settings)
        with monkeypatch.context() as patch:
            patch.setattr("outpace.methods.diffusion.base.serves", lambda parts: False)
            assert write(settings) == together


def test_rows_are_a_list_to_some_and_a_table_to_others() -> None:
    parts = Parts(Canvas(MASK), Ranked(), FixedBlocks(4), make_policy("none"))
    rows = random_rows(np.random.default_rng(2), parts)
    table = CanvasRows(rows).table()
    assert table is not None
    for before, after in zip(rows, CanvasRows(table), strict=True):
        same_row(before, after)
    scattered = replace(rows[0], held=np.array([4, 0, 2]), age=3)
    table = CanvasRows([rows[1], scattered]).table()
    assert table is not None
    same_row(table.row(1), scattered)
    for row, expected in zip(CanvasRows(table).rows([1, 0, 1]), (scattered, rows[1], scattered), strict=True):
        same_row(row, expected)
