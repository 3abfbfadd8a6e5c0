"""Samplers on a canvas: neutral settings equal plain decoding, rows equal themselves alone, caches and laws hold."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from outpace.errors import CapabilityError, ConfigError
from outpace.methods.base import Method
from outpace.methods.diffusion.eb_sampler import EbSampler
from outpace.methods.diffusion.fast_dllm import FastDllm
from outpace.methods.diffusion.fast_dllm_v2 import FastDllmV2
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.methods.diffusion.mdlm import Mdlm
from outpace.methods.diffusion.pc_sampler import PcSampler
from outpace.methods.diffusion.remdm import ReMdm
from outpace.run.row import Row
from outpace.sampling import Sampling
from outpace.testing.gtest import PROMPT, g_test, small_model, text_counts
from outpace.testing.toy import ToyModel
from outpace.testing.world import END, make_rows, write
from outpace.types import Adapter, FinishReason

GREEDY, WARM = Sampling(), Sampling(temperature=0.8)
MODELS = {
    "full": ToyModel(attention="full", sharpness=8.0),
    "full, shifted": ToyModel(attention="full", sharpness=8.0, logits_shift=True),
    "block": ToyModel(attention="block", sharpness=8.0),
    "block, shifted": ToyModel(attention="block", sharpness=8.0, logits_shift=True),
}
PLAIN = MaskedDiffusion()
NEUTRAL: list[tuple[Method, Method]] = [
    (FastDllm(threshold=1.0, cache="none"), PLAIN),
    (FastDllm(factor=1e-9, refresh=1), PLAIN),
    (EbSampler(gamma=0.0), MaskedDiffusion(order="entropy")),
    (EbSampler(gamma=0.0, order="margin"), MaskedDiffusion(order="margin")),
    (PcSampler(weight=0.0, background="none"), PLAIN),
    (PcSampler(weight=500.0, background="none"), MaskedDiffusion(order="left")),
    (ReMdm(eta=0.0), Mdlm()),
    (ReMdm(strategy="conf", eta=0.0, steps=5), Mdlm(steps=5)),
    (ReMdm(strategy="low", eta=0.0, per_step=2), MaskedDiffusion(per_step=2)),
    (MaskedDiffusion(steps=16), PLAIN),
    (MaskedDiffusion(order_temp=1e-9), PLAIN),
    (MaskedDiffusion(end="last"), PLAIN),
]
SAMPLERS: list[Method] = [
    FastDllm(threshold=0.2),
    FastDllm(factor=1.6, cache="prefix"),
    EbSampler(gamma=2.0),
    PcSampler(per_step=2),
    ReMdm(eta=0.4),
    ReMdm(strategy="conf", eta=1.0),
    ReMdm(strategy="low", eta=0.3),
    Mdlm(steps=6),
    MaskedDiffusion(steps=7, order="margin", order_temp=0.2),
    MaskedDiffusion(per_step=3, end="last"),
]


def texts(method: Method, settings: Sampling, target: Adapter, **named: Any) -> list[list[int]]:
    return [row.written for row in write(method, settings, make_rows(**named), target=target)]


@functools.cache
def plain_texts(plain: Method, is_warm: bool, model: str) -> list[list[int]]:
    return texts(plain, WARM if is_warm else GREEDY, MODELS[model])


def forwarded(rows: Sequence[Row]) -> int:
    return sum(row.usage.positions_scored for row in rows)


@pytest.mark.parametrize(
    ("number", "method", "plain"), [(i, *two) for i, two in enumerate(NEUTRAL)], ids=lambda one: str(one)[:70]
)
@pytest.mark.parametrize("half", [0, 1], ids=["full", "block"])
def test_the_neutral_setting_is_plain_decoding(number: int, method: Method, plain: Method, half: int) -> None:
    model = list(MODELS)[2 * half + (number + half) % 2]  # both kinds of attention, each with a shift every other time
    for settings in (GREEDY, WARM):
        assert texts(method, settings, MODELS[model]) == plain_texts(plain, settings is WARM, model)


@pytest.mark.parametrize("method", SAMPLERS, ids=lambda method: str(method)[:70])
@pytest.mark.parametrize("model", ["full", "block, shifted"])
def test_a_row_in_a_batch_equals_it_alone(method: Method, model: str) -> None:
    together = write(method, WARM, make_rows(end_tokens=(END,)), target=MODELS[model])
    for index in (0, 3):
        alone = make_rows(end_tokens=(END,))[index]
        write(method, WARM, [alone], target=MODELS[model])
        assert alone.written == together[index].written
        assert alone.usage.num_steps == together[index].usage.num_steps
    for row in together:
        assert END not in row.written[:-1]
        is_ended = row.written[-1] == END
        assert row.finish is (FinishReason.EOS if is_ended else FinishReason.LENGTH)
        assert is_ended or len(row.written) == 16
    assert any(row.finish is FinishReason.EOS and len(row.written) < 16 for row in together)


@pytest.mark.parametrize("cache", ["dual", "prefix"])
@pytest.mark.parametrize("model", MODELS)
def test_refreshing_in_every_step_is_decoding_without_a_cache(cache: str, model: str) -> None:
    for method in (FastDllm, FastDllmV2) if "block" in model else (FastDllm,):
        block = 2 if "block" in model else 8
        for settings in (GREEDY, WARM):
            fresh, cached, none = (
                write(method(block=block, threshold=0.2, **given), settings, make_rows(), target=MODELS[model])
                for given in ({"cache": cache, "refresh": 1}, {"cache": cache}, {"cache": "none"})
            )
            assert [row.written for row in fresh] == [row.written for row in none]
            assert max(row.usage.num_steps for row in none) < 16
            assert forwarded(cached) < forwarded(none)


def test_the_default_cache_is_the_papers_on_full_models() -> None:
    for model, cache in (("full", "dual"), ("block", "block")):
        used = write(FastDllm(block=4, threshold=0.2), WARM, make_rows(), target=MODELS[model])
        named = write(FastDllm(block=4, threshold=0.2, cache=cache), WARM, make_rows(), target=MODELS[model])
        assert [row.usage for row in used] == [row.usage for row in named]


@pytest.mark.parametrize("is_shifted", [False, True])
def test_the_block_cache_is_exact_and_sub_blocks_save_passes(is_shifted: bool) -> None:
    model = ToyModel(attention="block", sharpness=8.0, block_size=8, logits_shift=is_shifted)
    for settings in (GREEDY, WARM):
        exact, none, dual = (
            write(FastDllmV2(threshold=0.2, cache=cache), settings, make_rows(), target=model)
            for cache in ("block", "none", "auto")
        )
        assert [row.written for row in exact] == [row.written for row in none]
        for rows in (exact, dual):
            assert all(row.usage.num_steps < len(row.written) for row in rows)
        assert forwarded(exact) < forwarded(none)
        # A sub-block's first step computes the block; from the second on the cache inside the block saves.
        slow = [
            write(FastDllmV2(threshold=1.0, cache=cache), settings, make_rows(), target=model)
            for cache in ("auto", "block")
        ]
        assert forwarded(slow[0]) < forwarded(slow[1])


def test_steps_are_kept() -> None:
    for steps, block in ((5, 0), (16, 0), (7, 4), (4, 4), (1, 0)):
        method = MaskedDiffusion(steps=steps, block=block)
        rows = write(method, WARM, make_rows(), target=MODELS["full"])
        assert {row.usage.num_steps for row in rows} == {steps}
    for steps, hint in ((17, "16 tokens"), (3, "4 blocks")):
        with pytest.raises(ConfigError, match=hint):
            write(MaskedDiffusion(steps=steps, block=4), target=MODELS["full"])


@pytest.mark.parametrize("model", MODELS)
def test_steps_in_which_nothing_happens_cost_no_forward(model: str) -> None:
    """A row's forwards are the distinct times of its places; with more time steps there are more, up to one each."""
    forwards = []
    for steps in (1, 3, 16, 400):
        rows = write(Mdlm(steps=steps), WARM, make_rows(), target=MODELS[model])
        blocks = 1 if "full" in model else 5
        assert all(row.usage.num_steps <= min(16, steps * blocks) for row in rows)
        forwards.append(sum(row.usage.num_steps for row in rows))
    assert forwards == sorted(forwards) and forwards[2] < forwards[3] <= 64
    rows = write(Mdlm(steps=1), WARM, make_rows(), target=MODELS["full"])
    assert all(row.usage.num_steps == 1 for row in rows)


@pytest.mark.parametrize("strategy", ["cap", "rescale", "conf"])
def test_masking_again_ends(strategy: str) -> None:
    again = write(ReMdm(strategy=strategy, eta=1.0, steps=24), WARM, make_rows(), target=MODELS["full"])
    plain = write(Mdlm(steps=24), WARM, make_rows(), target=MODELS["full"])
    assert all(len(row.written) == 16 and row.usage.num_steps <= 24 for row in again)
    assert sum(row.usage.num_steps for row in again) > sum(row.usage.num_steps for row in plain)
    blocks = write(ReMdm(strategy=strategy, eta=1.0, steps=6), WARM, make_rows(), target=MODELS["block, shifted"])
    assert all(len(row.written) == 16 and row.usage.num_steps <= 6 * 5 for row in blocks)


def test_end_tokens_that_wait_make_longer_texts() -> None:
    settings = Sampling(temperature=0.8, logit_bias={END: 12.0})
    sizes = {}
    for end in ("free", "last"):
        rows = write(MaskedDiffusion(end=end), settings, make_rows(end_tokens=(END,)), target=MODELS["full"])
        assert all(row.written[-1] == END or len(row.written) == 16 for row in rows)
        sizes[end] = sum(len(row.written) for row in rows)
    assert sizes["free"] <= sizes["last"]


def laws(target: Adapter, state: tuple[int, int]) -> list[list[float]]:
    """What one forward of the whole text says of both places, the mask ruled out."""
    mask = target.capabilities.mask_id
    tokens = torch.tensor([[2 if token == mask else token for token in PROMPT] + list(state)])
    position = torch.arange(tokens.shape[1]).unsqueeze(0)
    logits = target.score(tokens, position, None, target.new_cache(*tokens.shape)).logits[0, -2:].clone()
    logits[:, mask] = float("-inf")
    return [[float(p) for p in row] for row in logits.softmax(-1)]


def time_law(target: Adapter, steps: int, sigma: Callable[[float], float], eta: float) -> torch.Tensor:
    """The law over two places of the ancestral sampler with `steps` time steps, by enumeration; [V * V]."""
    vocab, mask = target.capabilities.vocab_size, target.capabilities.mask_id
    assert mask is not None
    chances = {(mask, mask): 1.0}
    for step in range(steps):
        alpha_t, alpha_s = step / steps, (step + 1) / steps
        again = 0.0 if step == 0 or eta == 0 else sigma(min(1.0, (1 - alpha_s) / alpha_t))
        write_chance = (alpha_s - (1 - again) * alpha_t) / (1 - alpha_t)
        after: dict[tuple[int, int], float] = {}
        for state, weight in chances.items():
            said = laws(target, state)
            options: list[list[tuple[int, float]]] = []
            for place, token in enumerate(state):
                if token != mask:
                    options.append([(token, 1 - again), (mask, again)])
                else:
                    drawn = [(word, write_chance * said[place][word]) for word in range(vocab) if word != mask]
                    options.append([*drawn, (mask, 1 - write_chance)])
            for first, second in itertools.product(*options):
                key = (first[0], second[0])
                after[key] = after.get(key, 0.0) + weight * first[1] * second[1]
        chances = after
    law = torch.zeros(vocab, vocab, dtype=torch.float64)
    for state, weight in chances.items():
        law[state] += weight
    return law.flatten()


@pytest.mark.parametrize(
    ("method", "steps", "eta"),
    [
        (Mdlm(steps=3), 3, 0.0),
        (ReMdm(steps=4, eta=0.6), 4, 0.6),
        (ReMdm(strategy="rescale", steps=4, eta=0.9), 4, 0.9),
        (MaskedDiffusion(order="random"), 4000, 0.0),
    ],
    ids=["mdlm", "cap", "rescale", "random order is the limit"],
)
def test_texts_follow_the_enumerated_law(method: Method, steps: int, eta: float) -> None:
    target = small_model("full")
    if steps == 4000:  # two places never share a time step: the limit is the mean over both orders
        wanted = torch.zeros(16, dtype=torch.float64).view(4, 4)
        both = laws(target, (3, 3))
        for word in range(3):
            wanted[word] += torch.tensor(both[0][word]) * torch.tensor(laws(target, (word, 3))[1]) / 2
            wanted[:, word] += torch.tensor(both[1][word]) * torch.tensor(laws(target, (3, word))[0]) / 2
        wanted = wanted.flatten()
    else:
        is_rescaled = getattr(method, "strategy", "") == "rescale"
        wanted = time_law(target, steps, lambda most: eta * most if is_rescaled else min(eta, most), eta)
    assert float(wanted.sum()) == pytest.approx(1)
    counts = text_counts(method, target, 2, Sampling(temperature=1.0), 1500)
    assert g_test(counts, wanted) > 1e-3
    assert g_test(counts, wanted.view(4, 4).T.flatten()) < 1e-6  # the test can tell laws apart


@pytest.mark.parametrize(
    ("method", "settings", "match"),
    [
        (FastDllm, {"threshold": 0.0}, "threshold is 0"),
        (FastDllm, {"threshold": 1.5}, "threshold is 1.5"),
        (FastDllm, {"factor": -1.0}, "factor is -1"),
        (FastDllmV2, {"threshold": -0.1}, "threshold is -0.1"),
        (EbSampler, {"gamma": -1.0}, "gamma is -1"),
        (EbSampler, {"order": "left"}, "order is 'left'"),
        (PcSampler, {"weight": -1.0}, "weight is -1"),
        (PcSampler, {"alpha": 0.0}, "alpha is 0"),
        (PcSampler, {"per_step": 0}, "per_step is 0"),
        (Mdlm, {"steps": -1}, "steps is -1"),
        (ReMdm, {"strategy": "loop"}, "strategy is 'loop'"),
        (ReMdm, {"eta": 1.5}, "eta is 1.5"),
        (ReMdm, {"strategy": "low", "steps": 3}, "has no steps"),
        (ReMdm, {"per_step": 2}, "has no per_step"),
        (MaskedDiffusion, {"steps": 4, "per_step": 2}, "give one|Each decides|steps is 4"),
        (MaskedDiffusion, {"order_temp": -1.0}, "order_temp is -1"),
        (MaskedDiffusion, {"end": "first"}, "end is 'first'"),
    ],
)
def test_bad_settings_are_refused(method: Any, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        method(**settings)


def test_what_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not fill the model's block of 4"):
        write(FastDllmV2(block=3), target=MODELS["block"])
    with pytest.raises(CapabilityError, match="needs block attention"):
        write(FastDllm(cache="block"), target=MODELS["full"])
