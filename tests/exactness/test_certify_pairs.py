"""Certificates on random encoder-decoders of four families: what is promised holds, and enough is seen to tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import outpace
from outpace.errors import ConfigError
from outpace.methods.registry import load_method
from outpace.testing.certify import certify_model, logit_drift, own_prompts
from outpace.testing.certify_all import certifiable
from outpace.testing.plan import Plan
from outpace.testing.random_pairs import DRAFTER, FAMILIES, make_pair

pytest.importorskip("transformers")
METHODS = ("input-guided", "jacobi", "token-recycling", "generalised-aggressive")


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> outpace.LanguageModel:
    return outpace.load(make_pair(request.param, tmp_path_factory.mktemp(request.param)), dtype="float64")


@pytest.mark.parametrize("name", METHODS)
def test_a_random_pair_is_certified_as_far_as_it_is_seen(name: str, pair: outpace.LanguageModel) -> None:
    method = load_method(name)
    # The model drafts for itself where a drafter is needed: another one of the same letters would seldom agree.
    chosen = method.from_settings({"draft": pair.name} if method().needs.models else {})
    prompts, clock = own_prompts(pair)[:5], iter(range(10**6))
    settings = ("greedy", "temperature 0.7")
    given = {"settings": settings, "max_rounds": 1, "max_tokens": 20, "plan": Plan(10**9, clock=lambda: next(clock))}
    certificate = certify_model(pair, chosen, prompts, **given)
    assert [line.setting for line in certificate.lines] == list(settings)
    assert not any(line.faults for line in certificate.lines), certificate.render()
    assert sum(line.accepted for line in certificate.lines) > 0 < sum(line.tokens for line in certificate.lines)


@pytest.mark.parametrize("name", ["auto", "draft-model", "beam-search"])
def test_one_family_is_certified_whole(name: str, tmp_path: Path) -> None:
    """As `outpace certify --all -o draft=DRAFTER` does it; the other families are certified by the same command."""
    model = make_pair("m2m_100", tmp_path / "pair")
    ((method, _),) = certifiable(str(model), [name], str(model / DRAFTER))
    assert method is not None
    clock = iter(range(10**6))
    given = {"max_tokens": 24, "plan": Plan(10**9, clock=lambda: next(clock))}
    lm = outpace.load(model, dtype="float64")
    certificate = certify_model(lm, method, own_prompts(lm)[:6], **given)
    assert certificate.holds, certificate.render()


def test_a_drafter_goes_to_the_methods_that_leave_theirs_open(tmp_path: Path) -> None:
    model = str(make_pair("bart", tmp_path))
    names = ["draft-model", "auto", "medusa", "prompt-lookup", "block-draft"]
    found = [method for method, _ in certifiable(model, names, f"{model}/{DRAFTER}")]
    assert [getattr(method, "draft", None) for method in found] == [f"{model}/{DRAFTER}"] * 2 + [None] * 3
    assert [method is None for method in found] == [False, False, True, False, True]


def test_what_rounding_does_to_a_pair_is_measured_beside_its_source(pair: outpace.LanguageModel) -> None:
    assert 0 < logit_drift(pair.target, own_prompts(pair)[:2], 16) < 1e-9


def test_entries_that_were_not_written_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels get memory that nobody has filled."""
    lm = outpace.load(make_pair("t5", tmp_path), dtype="float32")
    assert lm.target.path == "compiled"
    new_cache, prompts = lm.target.new_cache, own_prompts(lm)[:4]

    def poisoned(*arguments: Any) -> Any:
        cache = new_cache(*arguments)
        for buffer in cache.buffers:
            buffer.fill_(torch.nan)
        return cache

    def texts() -> list[list[list[int]]]:
        names = ("autoregressive", "token-recycling", "beam-search")
        given = {"max_tokens": 16, "ignore_eos": True}
        return [[one.tokens for one in lm.generate(prompts, method=name, **given)] for name in names]

    wanted = texts()
    monkeypatch.setattr(lm.target, "new_cache", poisoned)
    assert texts() == wanted


def test_an_unknown_family_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no family 'gpt'"):
        make_pair("gpt", tmp_path)
