"""Hyperschedules: steps are decoding from left to right, flat is MDLM, caches change nothing, slips are mended."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from outpace.api.engine import load
from outpace.canvas.rules.hyper import Hyper
from outpace.errors import ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.diffusion.hyperschedule import Hyperschedule
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.methods.diffusion.mdlm import Mdlm
from outpace.run.row import Row
from outpace.sampling import Sampling
from outpace.testing.canvas_checks import toy_canvas
from outpace.testing.canvas_oracle import unmask
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, make_rows, write
from outpace.train import Recipe, train
from outpace.train.data import MASK_ID
from outpace.train.network import LlamaShape
from outpace.train.objectives import hybrid_noise, mask_tokens, whole_canvas
from outpace.train.sources import Source

WARM = Sampling(temperature=0.8)
KINDS = [("full", False, 8), ("full", True, 4), ("block", False, 0), ("block", True, 4)]


def texts(method: Method, target: ToyModel, settings: Sampling = WARM) -> list[list[int]]:
    return [row.written for row in write(method, settings, make_rows(max_tokens=8), target=target)]


@pytest.mark.parametrize(("attention", "is_shifted", "block"), KINDS)
def test_shapes_meet_the_methods_that_they_unify(attention: str, is_shifted: bool, block: int) -> None:
    target = toy_canvas(attention, is_shifted)
    left = texts(MaskedDiffusion(order="left", block=block), target)
    assert texts(Hyperschedule(shape="step", block=block), target) == left
    assert texts(Hyperschedule(shape="sliding", width=1, block=block), target) == left
    assert texts(Hyperschedule(shape="block", width=1, steps=1, block=block), target) == left
    for steps in (0, 3):
        flat = texts(Mdlm(steps=steps, block=block), target)
        assert texts(Hyperschedule(steps=steps, block=block), target) == flat
        assert flat != left, "alike texts would show nothing"


def test_steps_are_autoregressive_decoding_of_the_same_network() -> None:
    # The same weights: causal, and as blocks of one place whose law is read one place before, which no mask reaches.
    causal = ToyModel(attention="causal", sharpness=6.0)
    network = ToyModel(attention="block", block_size=1, logits_shift=True, sharpness=6.0)
    mask = network.capabilities.mask_id
    assert mask is not None
    plain = texts(Autoregressive(), causal, Sampling(bad_words=((mask,),)))
    assert texts(Hyperschedule(shape="step"), network, Sampling()) == plain
    assert texts(Hyperschedule(shape="step", cache="none"), network, Sampling()) == plain


def test_steps_equal_the_plain_loop_without_cache_or_batch() -> None:
    target = toy_canvas("block", False)
    for row in write(Hyperschedule(shape="step", block=4), WARM, make_rows(max_tokens=8), target=target):
        prompt = list(row.tokens[: -len(row.written)])
        assert row.written == unmask(target, prompt, [-1] * 8, WARM, row.key, 4, "left")


@pytest.mark.parametrize("shape", ["step", "flat", "sliding", "block"])
@pytest.mark.parametrize("is_shifted", [False, True])
def test_the_cache_changes_nothing_while_tokens_are_mended(shape: str, is_shifted: bool) -> None:
    target = toy_canvas("block", is_shifted)
    method = Hyperschedule(shape=shape, correct=0.3)
    cached = write(method, WARM, make_rows(max_tokens=12), target=target)
    bare = write(replace(method, cache="none"), WARM, make_rows(max_tokens=12), target=target)
    assert [row.written for row in cached] == [row.written for row in bare]
    assert sum(row.usage.positions_scored for row in cached) < sum(row.usage.positions_scored for row in bare)
    unmended = write(replace(method, correct=0.0), WARM, make_rows(max_tokens=12), target=target)
    assert [row.written for row in cached] != [row.written for row in unmended]
    for index in range(len(PROMPTS)):
        assert write(method, WARM, [make_rows(max_tokens=12)[index]], target=target)[0].written == cached[index].written


def test_noise_levels_by_hand() -> None:
    def levels(rule: Hyper, time: int, count: int = 6) -> list[float]:
        begins, lasts = rule.timing(np.arange(count), count)
        return [min(1.0, max(0.0, 1 - (time - begin) / lasts)) for begin in begins]

    assert levels(Hyper("step"), 2) == [0, 0, 1, 1, 1, 1]
    assert levels(Hyper("flat", steps=4), 1) == [0.75] * 6
    assert levels(Hyper("flat"), 3) == [0.5] * 6
    assert levels(Hyper("sliding", width=4, rate=2.0), 2) == [0.5, 0.625, 0.75, 0.875, 1, 1]
    assert levels(Hyper("block", width=2, steps=2), 3) == [0, 0, 0.5, 0.5, 1, 1]


def test_a_sliding_window_writes_within_itself() -> None:
    target, seen = ToyModel(attention="full"), []

    class Watched(Hyperschedule):
        def decide(self, steps, state):  # type: ignore[no-untyped-def]
            seen.append([np.flatnonzero(step.row.tokens[1:] == target.capabilities.mask_id) for step in steps])
            return super().decide(steps, state)

    row = Row([1], 1, 5, 24)
    write(Watched(shape="sliding", width=4, rate=2.0, block=24), WARM, [row], target=target)
    # Places begin two per step and take four: the first open place is at most eight before the first untouched one.
    for (masked,) in seen:
        written = np.setdiff1d(np.arange(24), masked)
        assert not len(masked) or written.max(initial=-1) - masked.min() < 8
    assert len(seen) < 18


def test_hybrid_noise_by_its_shares() -> None:
    tokens = torch.randint(2, 40, (64, 64), generator=torch.Generator().manual_seed(0))
    masked, weights = mask_tokens(tokens, 3, 1)
    noisy, asked = hybrid_noise(masked, weights, 0.25, 40, 3, 1)
    hidden, random = masked == MASK_ID, (masked == MASK_ID) & (noisy != MASK_ID)
    assert float(random.sum() / hidden.sum()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(noisy[~hidden], tokens[~hidden])
    assert torch.equal(asked[hidden], weights[hidden])
    assert torch.allclose(asked[~hidden], torch.tensor(1 / tokens.numel()))
    assert len(noisy[random].unique()) == 38
    half = torch.zeros_like(hidden)
    half[:, 32:] = True
    noisy, asked = hybrid_noise(*mask_tokens(tokens, 3, 1, half), 0.25, 40, 3, 1, half)
    assert torch.equal(noisy[:, :32], tokens[:, :32])
    assert not asked[:, :32].any()
    assert torch.equal(whole_canvas(tokens, 3, 1, True).inputs[:, 1:], masked[:, 1:]), "without a share nothing changes"


PHRASES = ("abcdef", "ghijkl", "mnopqr", "stuvwx")
FOLLOWS = {a + b for one in map("".join, itertools.product(PHRASES, repeat=2)) for a, b in itertools.pairwise(one)}


def written(count: int, seed: int) -> str:
    return "".join(PHRASES[at] for at in np.random.default_rng(seed).integers(len(PHRASES), size=count))


HYBRID = Recipe(
    name="hybrid",
    summary="",
    shape=LlamaShape(
        hidden=32,
        layers=2,
        heads=2,
        kv_heads=1,
        head_dim=16,
        ffn=48,
        vocab=258,
        context=64,
        causal=False,
        shifted=False,
    ),
    objective="masked",
    uniform=0.3,
    steps=300,
    gpu_steps=300,
    rows=16,
    length=24,
    long_share=0.0,
    warmup=5,
    matrix_rate=2e-2,
    other_rate=2e-2,
    checkpoint_every=1000,
    sources=(
        Source(
            name="phrases",
            files=(),
            origin="",
            licence="",
            note="",
            weight=1.0,
            read=lambda data: (written(40, seed) for seed in range(40)),
        ),
    ),
)


def test_a_network_trained_on_hybrid_noise_mends_what_it_wrote(tmp_path: Path) -> None:
    assert train(HYBRID, tmp_path / "hybrid", data=tmp_path, threads=1, compiled=False) == 0
    lm = load(str(tmp_path / "hybrid"), is_compiled=False, dtype="float32")

    def slips(correct: float) -> float:
        wrong = total = 0
        for seed in range(12):
            # Six places per step: they are drawn without sight of each other, and slip.
            method = Hyperschedule(steps=4, block=24, correct=correct)
            asked = {"max_tokens": 24, "temperature": 1.0, "seed": seed, "ignore_eos": True}
            text = "f" + lm.generate("abcdef", method=method, **asked).text
            wrong += sum(a + b not in FOLLOWS for a, b in itertools.pairwise(text))
            total += len(text) - 1
        return wrong / total

    assert slips(0.5) < 0.6 * slips(0.0)


def test_bad_settings() -> None:
    for bad in ({"shape": "step", "steps": 3}, {"width": 2}, {"shape": "sliding", "steps": 2}, {"rate": 2.0}):
        with pytest.raises(ConfigError, match="has no"):
            Hyperschedule(**bad)  # type: ignore[arg-type]
    for bad in ({"shape": "round"}, {"correct": 1.5}, {"rate": -1.0}, {"rounds": -1}):
        with pytest.raises(ConfigError):
            Hyperschedule(**bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="holds end tokens back"):
        Hyperschedule(correct=0.5, end="last")
