"""Cost curves: interpolation by hand, storing, measuring on a toy model, and what a bandit makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from outpace.errors import ConfigError
from outpace.schedule.bandit import ArmStats, Bandit, StepCost, TreeCut, best_length
from outpace.schedule.cost import CostCurve
from outpace.testing.toy import ToyModel
from outpace.tune import curve_file, load_curve, measure_curve, save_curve

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


def test_best_length_by_brute_force() -> None:
    seconds = [CURVE.seconds_for(1 + n) for n in range(8)]
    for chance in (0.05, 0.3, 0.6, 0.9):
        rates = [sum(chance**i for i in range(n + 1)) / (0.1 + seconds[n]) for n in range(8)]
        assert best_length(chance, 7, 0.1, seconds) == rates.index(max(rates))


def test_step_cost_follows_the_machine() -> None:
    cost = StepCost(CURVE)
    for _ in range(50):
        cost.add(3, 3.2)  # twice what the curve says of 4 tokens
    assert cost(0) == pytest.approx(2.0) and cost(7) == pytest.approx(6.4)
    learned = StepCost()
    learned.add(0, 1.0)
    for _ in range(30):
        learned.add(4, 3.0)
    assert learned(4) / learned(0) > 2


def _bandit(explore: float = 0.1, curve: CostCurve = CURVE) -> Bandit:
    return Bandit([0, 3], curve, explore, is_timed=True)


def test_an_arm_that_pays_is_found_and_kept() -> None:
    bandit, stats = _bandit(), [[ArmStats(), ArmStats()]]
    steps = []
    for _ in range(200):
        if bandit.countdown <= 0:
            bandit.choose(stats)
        steps.append(bandit.current)
        if bandit.current == 0:
            bandit.observe_plain(1.0)
        else:  # 3 drafts, all kept: 4 tokens for 1.6 + 0.1
            stats[0][1].add(4, 3, False)
            bandit.observe(3, 0.1, 1.6, 4.0)
    assert steps[-1] == 1 and sum(steps) > 150


def test_trials_that_fail_lose_no_more_than_their_share() -> None:
    bandit, stats = _bandit(explore=0.05), [[ArmStats(), ArmStats()]]
    lost = spent = 0.0
    tried = 0
    for _ in range(2000):
        if bandit.countdown <= 0:
            bandit.choose(stats)
        if bandit.current == 0:
            spent += 1.0
            bandit.observe_plain(1.0)
        else:  # nothing is kept: 1.7 for what 1.0 would have written
            tried += 1
            spent, lost = spent + 1.7, lost + 0.7
            stats[0][1].add(1, 0, True)
            bandit.observe(3, 0.1, 1.6, 1.0)
    assert tried > 10
    assert lost / spent < 0.05 + 0.01


def test_a_hopeless_arm_is_never_tried() -> None:
    slow = CostCurve((1, 2, 4, 8), (1.0, 3.0, 6.0, 12.0))
    bandit, stats = _bandit(explore=0.5, curve=slow), [[ArmStats(), ArmStats()]]
    for _ in range(300):
        if bandit.countdown <= 0:
            bandit.choose(stats)
        assert bandit.current == 0
        bandit.observe_plain(1.0)


def test_a_tree_is_cut_where_nodes_are_never_kept() -> None:
    cut, cost = TreeCut(16), StepCost(CURVE, 1.0)
    for _ in range(100):
        cut.add(16, [[0, 2, -1]])
    assert cut.chance[0] == pytest.approx(1, abs=1e-3) and cut.chance[2] == pytest.approx(1, abs=1e-3)
    assert cut.chance[1] < 1e-4
    rates = {n: (1 + (n > 0) + (n > 2)) / cost(n) for n in (2, 4, 8, 16)}
    assert cut.best(16, 0.0, cost) == max(rates, key=lambda n: rates[n]) == 4
