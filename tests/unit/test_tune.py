"""Cost curves: interpolation by hand, storing, measuring on a toy model, and what a bandit makes of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from outpace.errors import ConfigError
from outpace.schedule.bandit import ArmStats, Bandit, BanditArm, TreeCut, WindowPlan
from outpace.schedule.cost import CostCurve, StepCost
from outpace.schedule.tune import curve_file, load_curve, measure_curve, save_curve
from outpace.testing.toy import ToyModel

CURVE = CostCurve((1, 2, 4, 8), (1.0, 1.2, 1.6, 3.2))


def test_interpolation_by_hand() -> None:
    assert CURVE.seconds_for(1) == 1.0
    assert CURVE.seconds_for(3) == pytest.approx(1.4)
    assert CURVE.seconds_for(6) == pytest.approx(2.4)
    assert CURVE.seconds_for(12) == pytest.approx(4.8)  # the last slope goes on: 0.4 per token
    assert CURVE.ratio(4) == pytest.approx(1.6)


def test_a_curve_that_is_none_is_refused() -> None:
    for sizes, seconds in (((2, 4), (1.0, 2.0)), ((1, 2), (1.0,)), ((1, 4, 2), (1.0, 1.0, 1.0)), ((1,), (0.0,))):
        with pytest.raises(ConfigError):
            CostCurve(sizes, seconds)


def test_stored_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path))
    model = ToyModel()
    assert load_curve(model) is None
    assert save_curve(model, CURVE).is_relative_to(tmp_path)
    assert load_curve(model) == CURVE
    curve_file(model).write_text("{broken", encoding="utf-8")
    assert load_curve(model) is None


def test_measuring_needs_room() -> None:
    model = ToyModel()
    curve = measure_curve(model, context=8, sizes=(1, 2, 4), repeats=2)
    assert curve.sizes == (1, 2, 4) and min(curve.seconds) > 0 and curve.context == 8
    with pytest.raises(ConfigError, match="too short"):
        measure_curve(model, sizes=(1, model.capabilities.max_positions))


def _roofline(rows: int, tokens: int) -> float:
    """A machine that streams weights in 10 ms and computes a token in 1, with 0.1 more per row."""
    return max(10e-3, 1e-3 * tokens) + 1e-4 * rows


def _cost(*rows: int) -> StepCost:
    cost = StepCost()
    cost.add_prompt(5, 10e-3)  # too short to tell
    cost.add_prompt(200, 200e-3)
    for count in rows:
        cost.add_plain(count, _roofline(count, count))
    return cost


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16, 32])
def test_a_step_is_priced_by_rows_and_nodes_before_any_draft(rows: int) -> None:
    cost = _cost(rows)
    for tokens in (rows, rows + 1, 2 * rows, 4 * rows, 9 * rows):
        assert cost(rows, tokens) == pytest.approx(_roofline(rows, tokens), rel=0.35)
    assert cost.knows(rows) and not cost.knows(100)


def test_step_cost_follows_the_machine() -> None:
    cost = StepCost(CURVE)
    cost.add_plain(1, 1.0)
    for _ in range(100):
        cost.add(1, 4, 3.2)  # twice what the curve says of 4 tokens
    assert cost(1, 1) == pytest.approx(2.0) and cost(1, 8) == pytest.approx(6.4)
    learned = _cost(8)
    for _ in range(50):
        learned.add(8, 40, 3 * _roofline(8, 40))
    assert learned(8, 40) == pytest.approx(3 * _roofline(8, 40), rel=0.1)
    for _ in range(50):
        learned.add_plain(8, 3 * _roofline(8, 8))  # the machine is slower, not drafts dearer
    assert learned(8, 8) == pytest.approx(3 * _roofline(8, 8), rel=0.01)


def test_drafts_of_a_step_are_the_best_of_all_choices() -> None:
    bandit = Bandit([BanditArm(0), BanditArm(3, kind="chain")], None, 0.1)
    bandit.num_rows, bandit.cost = 3, _cost(3)
    stats = [[ArmStats(), ArmStats(9, 9, kept, 10 - kept)] for kept in (9.5, 5.0, 0.5)]
    chosen = bandit.lengths(1, stats, [3, 2, 1])
    pooled = (1.5 + 15) / (2 + 30)
    chances = [(row[1].accepted + 2 * pooled) / 12 for row in stats]

    def rate(lengths: tuple[int, ...]) -> float:
        written = 3 + sum(each**i for each, n in zip(chances, lengths, strict=True) for i in range(1, n + 1))
        return written / bandit.cost(3, 3 + sum(lengths))

    every = [key for key in itertools.product(range(4), range(3), range(2)) if any(key)]
    assert rate(tuple(chosen)) == max(map(rate, every))


def test_rows_that_are_ahead_are_not_drafted_for() -> None:
    bandit = Bandit([BanditArm(0), BanditArm(8, kind="chain")], None, 0.1)
    bandit.num_rows, bandit.cost = 16, _cost(16)
    stats = [[ArmStats(), ArmStats(9, 9, 9.5, 0.5)] for _ in range(16)]
    chosen = bandit.lengths(1, stats, [8] * 16, [40] * 15 + [50])
    assert chosen[15] > 0 and not any(chosen[:15])


def test_trees_go_to_the_rows_that_keep_them() -> None:
    """Of all ways to divide nodes over rows the best is taken; a row whose trees are never kept gets none."""
    bandit = Bandit([BanditArm(0), BanditArm(4, kind="tree")], None, 0.1)
    bandit.current, bandit.num_rows, bandit.cost = 1, 8, _cost(8)
    bandit.num_beside, bandit.arms[1].cut.chance = 5, [0.8, 0.1, 0.4, 0.05]
    stats = [[ArmStats(), ArmStats(9, 9, kept, 0, 9.0)] for kept in (12.0, 9.0, 0.0)]
    chosen = bandit.tree_lengths(1, stats, [4, 4, 4])

    def rate(lengths: tuple[int, ...]) -> float:
        gains = [sum(bandit.arms[1].cut.chance[:n]) for n in lengths]
        written = 8 + sum(gain * own[1].share for gain, own in zip(gains, stats, strict=True))
        return written / bandit.cost(8, 8 + sum(lengths))

    assert rate(tuple(chosen)) == max(map(rate, itertools.product(range(5), repeat=3)))
    assert chosen[0] > chosen[2] == 0
    for _ in range(60):
        stats[2][1].rest()
    assert bandit.tree_lengths(1, stats, [4, 4, 4])[2] > 0  # what was long ago is no reason


def test_rows_beside_are_part_of_the_cost_alone() -> None:
    bandit, stats = Bandit([BanditArm(0), BanditArm(8, kind="chain")], None, 0.1), [[ArmStats(), ArmStats(9, 9, 5, 5)]]
    bandit.num_rows, bandit.cost = 1, _cost(1)
    alone = bandit.lengths(1, stats, [8])
    bandit.num_rows, bandit.num_beside, bandit.cost = 16, 15, _cost(16)
    assert alone[0] > bandit.lengths(1, stats, [8])[0] == 0


def _drive(bandit: Bandit, rows: int, steps: int, kept: float) -> tuple[float, float, int]:
    """Replay a drafter that is right with a set probability; return the seconds, the share lost, and its steps."""
    stats, spent, written, drafted = [[ArmStats(), ArmStats()] for _ in range(rows)], 0.0, 0.0, 0
    for _ in range(steps):
        if bandit.countdown <= 0 or bandit.num_rows != rows:
            bandit.choose(stats)
        if bandit.current == 0:
            bandit.observe_plain(_roofline(rows, rows))
            spent, written = spent + _roofline(rows, rows), written + 1
            continue
        bandit.arms[1].reached([8] * rows)
        lengths = bandit.lengths(1, stats, [8] * rows)
        progress = 1.0
        for row, length in zip(stats, lengths, strict=True):
            won = sum(kept**i for i in range(1, length + 1))
            row[1].add(1, won, won < length)  # type: ignore[arg-type]
            progress += won / rows
        seconds = 2e-4 + _roofline(rows, rows + sum(lengths))
        bandit.observe(rows + sum(lengths), 2e-4, seconds - 2e-4, progress)
        spent, written, drafted = spent + seconds, written + progress, drafted + 1
    return spent, spent / (written * _roofline(rows, rows)), drafted


@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("steps", [48, 1000])
def test_a_batch_never_loses_what_trials_may_not(rows: int, steps: int) -> None:
    bandit = Bandit([BanditArm(0), BanditArm(8, 1e-4, kind="chain")], None, 0.01)
    bandit.cost.add_prompt(200, 200e-3)
    _, lost, drafted = _drive(bandit, rows, steps, 0.0)
    assert lost < 1.03 and (drafted > 0 or steps == 48)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_an_arm_that_pays_is_found_and_kept(rows: int) -> None:
    bandit = Bandit([BanditArm(0), BanditArm(8, 1e-4, kind="chain")], None, 0.01)
    bandit.cost.add_prompt(200, 200e-3)
    _, lost, drafted = _drive(bandit, rows, 300, 0.95)
    assert lost < 0.8 and drafted > 200


def test_fewer_rows_are_drafted_for_again() -> None:
    bandit = Bandit([BanditArm(0), BanditArm(8, 1e-4, kind="chain")], None, 0.01)
    bandit.cost.add_prompt(200, 200e-3)
    at_once = _drive(bandit, 32, 60, 0.7)[2]
    assert at_once < 10 < _drive(bandit, 2, 60, 0.7)[2]


def test_a_hopeless_arm_is_never_tried() -> None:
    slow = CostCurve((1, 2, 4, 8), (1.0, 3.0, 6.0, 12.0))
    bandit, stats = Bandit([BanditArm(0), BanditArm(3)], slow, 0.5), [[ArmStats(), ArmStats()]]
    for _ in range(300):
        if bandit.countdown <= 0:
            bandit.choose(stats)
        assert bandit.current == 0
        bandit.observe_plain(1.0)


def test_a_tree_is_cut_where_nodes_are_never_kept() -> None:
    cut = TreeCut(16)
    for _ in range(100):
        cut.add([16], [[1, 3, -1]])
    assert cut.chance[1] == pytest.approx(1, abs=1e-3) and cut.chance[3] == pytest.approx(1, abs=1e-3)
    assert max(cut.chance[0], cut.chance[2]) < 1e-4
    bandit = Bandit([BanditArm(0), BanditArm(16, kind="tree")], CURVE, 0.1)
    bandit.num_rows, bandit.arms[1].cut = 1, cut
    rates = {n: (1 + (n > 1) + (n > 3)) / bandit.cost(1, 1 + n) for n in (1, 2, 3, 4, 8, 16)}
    bandit.plan = bandit.expect(1, [[ArmStats(), ArmStats()]])
    assert bandit.nodes() == max(rates, key=lambda n: rates[n]) == 4
    bandit.plan = WindowPlan(1.0, 1.0, 9)
    assert bandit.nodes() == 9
