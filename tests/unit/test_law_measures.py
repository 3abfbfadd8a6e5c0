"""Figures of laws by compiled code against tensors: tokens alike, numbers to float32, each law by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import outpace
from outpace.kernels import load_library
from outpace.sampling import measures
from outpace.sampling.measures import measure, measure_there, plain_measure

needs_kernels = pytest.mark.skipif(load_library() is None, reason="no compiled kernels here")


def logits_of(vocab: int, dtype: torch.dtype) -> torch.Tensor:
    logits = torch.randn(3, 5, vocab, generator=torch.Generator().manual_seed(vocab)) * 4
    logits[0, 1, vocab // 2 :] = float("-inf")  # forbidden tokens
    logits[1, 2, -1] = logits[1, 2, 3] = 30.0  # a tie: the lower id
    logits[2, 0] = -5.0
    return logits.to(dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [7, 32, 61, 1000])
def test_compiled_figures_are_those_of_tensors(vocab: int, dtype: torch.dtype) -> None:
    logits = logits_of(vocab, dtype)
    found, expected = measure(logits), plain_measure(logits)
    assert found is not None
    assert (found.tokens == expected.tokens).all()
    assert found.tokens[1, 2] == 3
    assert (found.top == expected.top).all()
    assert (found.second == expected.second).all()
    np.testing.assert_allclose(found.mass, expected.mass, rtol=2e-6)
    np.testing.assert_allclose(found.top_two, expected.top_two, rtol=4e-6)
    np.testing.assert_allclose(found.entropy, expected.entropy, atol=2e-5)
    probs = logits.double().softmax(-1)
    entropy = -(probs * probs.clamp(min=1e-300).log()).sum(-1)
    np.testing.assert_allclose(expected.entropy, entropy.numpy(), atol=1e-12)


def test_figures_of_a_device_are_those_of_tensors() -> None:
    logits = logits_of(61, torch.bfloat16)
    logits[0, 2, 5], logits[0, 3] = float("nan"), float("-inf")
    found, expected = measure_there(logits), plain_measure(logits)
    assert (found.tokens == expected.tokens).all()
    assert found.tokens[0, 2] == found.tokens[0, 3] == -1
    is_law = found.tokens >= 0
    np.testing.assert_allclose(found.mass[is_law], expected.mass[is_law], rtol=2e-6)
    np.testing.assert_allclose(found.top_two, expected.top_two, rtol=4e-6)


@needs_kernels
def test_a_barred_token_is_in_no_law() -> None:
    logits = logits_of(61, torch.bfloat16)
    apart = logits.clone()
    apart[..., 3] = float("-inf")
    found, expected = measure(logits, 3), measure(apart)
    assert torch.equal(logits, apart)
    assert found is not None
    assert expected is not None
    assert (found.tokens == expected.tokens).all()
    assert (found.mass == expected.mass).all()


@needs_kernels
def test_a_law_has_the_same_bits_whatever_stands_beside_it() -> None:
    logits = logits_of(61, torch.float32)
    whole, alone = measure(logits), measure(logits[1:2, 2:3].contiguous())
    assert whole is not None
    assert alone is not None
    assert whole[1, 2].mass == alone[0, 0].mass
    assert whole[1, 2].moment == alone[0, 0].moment


@needs_kernels
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_laws_that_are_none_have_no_token(value: float) -> None:
    logits = logits_of(61, torch.float32)
    logits[0, 0, 60] = value
    logits[0, 3] = float("-inf")
    found = measure(logits)
    assert found is not None
    assert found.tokens[0, 0] == found.tokens[0, 3] == -1
    assert (found.top_two[0, 0] == 0).all()
    assert (found.tokens.flatten() < 0).sum() == 2


@needs_kernels
@pytest.mark.parametrize("method", ["masked-diffusion", "eb-sampler", "fast-dllm"])
def test_texts_are_the_same_without_compiled_figures(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = outpace.load("stories-block")
    prompts = ["Once upon a time", "The dog"]
    fast = [result.tokens for result in lm.generate(prompts, method=method, max_tokens=32)]
    monkeypatch.setattr(measures, "_offered", [])
    assert [result.tokens for result in lm.generate(prompts, method=method, max_tokens=32)] == fast
