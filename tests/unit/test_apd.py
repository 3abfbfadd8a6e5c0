"""Adaptive parallel decoding, against decoding written out, and at both ends of its settings."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from guided_oracle import Agreement, decode
from torch import Tensor

from outpace.errors import ConfigError
from outpace.methods.diffusion.apd import Apd, law_product
from outpace.sampling import Sampler, Sampling
from outpace.testing import checks, run_contract
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, make_rows, target_for, write

WARM = Sampling(temperature=0.8)


@functools.lru_cache(maxsize=8)
def model(attention: str, shift: bool = False) -> ToyModel:
    return ToyModel(attention=attention, logits_shift=shift, block_size=8, like=target_for("causal"), noise=0.1, seed=3)


def product(sampler: Sampler, weight: float) -> Agreement:
    """The product of both laws, normalised in plain arithmetic, drawn with the diffusion model's own noise."""

    def agreement(own: Tensor, guide: Tensor, drawn: list[int], places: list[int], visit: int) -> list[bool]:
        agrees = []
        for p, g, token, place in zip(own.softmax(-1).tolist(), guide.softmax(-1).tolist(), drawn, places, strict=True):
            parts = [a**weight * b ** (1 - weight) if a > 0 else 0.0 for a, b in zip(p, g, strict=True)]
            law = torch.tensor([math.log(part / sum(parts)) if part else -math.inf for part in parts])
            where = torch.tensor([[place]])
            picked = sampler.pick(law.double().view(1, 1, -1), where, visit=visit).item()
            agrees.append(picked == token or place == places[0])
        return agrees

    return agreement


@pytest.mark.parametrize(("attention", "shift"), [("full", False), ("full", True), ("block", True)])
@pytest.mark.parametrize(("weight", "reach"), [(0.7, 0), (0.3, 5)])
@pytest.mark.parametrize("settings", [Sampling(), WARM], ids=["greedy", "warm"])
def test_apd_by_the_slow_way(attention: str, shift: bool, weight: float, reach: int, settings: Sampling) -> None:
    target, guide = model(attention, shift), target_for("causal")
    method = Apd(weight=weight, max_lookahead=reach)
    rows = write(method, settings, make_rows(), target=target, models={"guide": guide})
    assert sum(row.usage.num_steps for row in rows) < 16 * len(rows)
    row = rows[1]
    sampler = Sampler(settings, [row.key])
    wanted, steps = decode(target, guide, PROMPTS[1], 16, sampler, product(sampler, weight), reach=reach)
    assert row.written == wanted
    assert row.usage.num_steps == steps


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_mixture_by_its_formula(weight: float) -> None:
    source = torch.Generator().manual_seed(1)
    own, guide = torch.randn(2, 4, 9, generator=source, dtype=torch.float64)
    own[:, 3] = float("-inf")
    got = law_product(own, guide, weight).softmax(-1)
    p, g = own.softmax(-1), guide.softmax(-1)
    wanted = p**weight * g ** (1 - weight) * (p > 0)
    torch.testing.assert_close(got, wanted / wanted.sum(-1, keepdim=True))
    assert not torch.isnan(law_product(own, guide, weight)).any()


@pytest.mark.parametrize("settings", [Sampling(), WARM], ids=["greedy", "warm"])
def test_all_weight_on_the_diffusion_model_keeps_every_draw(settings: Sampling) -> None:
    for reach in (1, 4, 0):
        rows = write(Apd(weight=1.0, max_lookahead=reach), settings, make_rows(), target=model("full"))
        assert {row.usage.num_steps for row in rows} == {16 // reach if reach else 1}


def test_a_window_of_one_is_left_to_right_whatever_the_weight() -> None:
    texts = []
    for weight in (0.0, 0.5, 1.0):
        rows = write(Apd(weight=weight, max_lookahead=1), WARM, make_rows(), target=model("full", True))
        texts.append([row.written for row in rows])
        assert {row.usage.num_steps for row in rows} == {16}
    assert texts[0] == texts[1] == texts[2]


def test_more_weight_on_the_diffusion_model_takes_fewer_steps() -> None:
    steps = []
    for weight in (0.0, 0.5, 0.9, 1.0):
        rows = write(Apd(weight=weight), WARM, make_rows() + make_rows(max_tokens=24), target=model("full"))
        steps.append(sum(row.usage.num_steps for row in rows))
    assert steps[0] > steps[1] > steps[2] >= steps[3]


def test_the_windows_save_positions_and_refresh_undoes_the_cache() -> None:
    target = model("full", True)
    plain, cut, frozen, fresh = (
        write(method, WARM, make_rows(), target=target)
        for method in (
            Apd(weight=0.5),
            Apd(weight=0.5, max_lookahead=4),
            Apd(weight=0.5, kv_window=2),
            Apd(weight=0.5, kv_window=2, refresh=1),
        )
    )
    spent = [
        sum(row.usage.positions_scored for row in rows) / sum(row.usage.num_steps for row in rows)
        for rows in (plain, cut, frozen)
    ]
    assert spent[1] < spent[0]
    assert spent[2] < spent[0]
    assert [row.written for row in fresh] == [row.written for row in plain]


def test_the_contract_holds_with_both_windows() -> None:
    chosen = [checks.check_alone, checks.check_end_tokens, checks.check_lengths, checks.check_late_rows]
    chosen += [checks.check_bookkeeping, checks.check_broken_neighbour, checks.check_settings]
    assert run_contract(Apd(weight=0.5, max_lookahead=5, kv_window=2), chosen) == {}


def test_bad_settings() -> None:
    bad: list[dict[str, object]] = [
        {"weight": 1.1},
        {"weight": -0.1},
        {"max_lookahead": -1},
        {"kv_window": -2},
        {"block": 4},
        {"ahead": 3},
        {"kv_window": 4, "cache": "dual"},
    ]
    for settings in bad:
        with pytest.raises(ConfigError):
            Apd(**settings)  # type: ignore[arg-type]
