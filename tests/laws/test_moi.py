"""Mixture of inputs beside its formula over whole texts, in float64."""

import math

import pytest
import torch

import outpace
from outpace.errors import CapabilityError
from outpace.laws.moi import MixedInputs
from outpace.testing.toy import ToyModel

ROWS = [[5, 3, 2, 8], [4], [9, 9, 9, 9, 9, 1, 2]]


def last_law(toy: ToyModel, inputs: list[torch.Tensor]) -> torch.Tensor:
    """The law behind a whole text of soft inputs."""
    size = len(inputs)
    ids, places = torch.zeros(1, size, dtype=torch.int64), torch.arange(size).unsqueeze(0)
    given = (ids, places, None, toy.new_cache(1, size))
    return toy.score(*given, inputs=torch.stack(inputs).unsqueeze(0)).logits[0, -1].softmax(-1)


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_texts_are_those_of_the_formula(beta: float) -> None:
    toy = ToyModel(sharpness=2.0)
    lm, vocab = outpace.LanguageModel(toy), toy.capabilities.vocab_size
    table = toy.embed(torch.arange(vocab))
    together = lm.generate(ROWS, law=f"moi:beta={beta}", max_tokens=15)
    for prompt, result in zip(ROWS, together, strict=True):
        inputs = [table[token] for token in prompt]
        for token in result.tokens:
            law = last_law(toy, inputs)
            assert token == int(law.argmax())
            entropy = float(-(law * law.log()).sum()) / math.log(vocab)
            one = torch.nn.functional.one_hot(torch.tensor(token), vocab).double()
            weights = (entropy * law + (beta + 1 - entropy) * one) / (beta + 1)
            assert float(weights.sum()) == pytest.approx(1)
            inputs.append(weights @ table)
        assert lm.generate(prompt, law=f"moi:beta={beta}", max_tokens=15).tokens == result.tokens
    assert [r.tokens for r in together] != [r.tokens for r in lm.generate(ROWS, max_tokens=15)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_one_hot_limit_is_plain_decoding(temperature: float) -> None:
    lm = outpace.LanguageModel(ToyModel(sharpness=2.0))
    asked = {"max_tokens": 30, "temperature": temperature, "seed": 7}
    plain = [r.tokens for r in lm.generate(ROWS, **asked)]
    for beta in ("inf", "1e14"):
        assert [r.tokens for r in lm.generate(ROWS, law=f"moi:beta={beta}", **asked)] == plain


def test_beams_and_the_model_that_ships() -> None:
    lm = outpace.load("stories", dtype="float64", is_compiled=False)
    limit, plain = (
        lm.generate("Once upon a time", law=law, max_tokens=8, method="beam-search") for law in ("moi:beta=1e14", None)
    )
    assert limit.tokens == plain.tokens
    near = outpace.LanguageModel(MixedInputs(lm.target, 1.0)).generate([[7, 8], [9]], max_tokens=4)
    assert all(result.tokens for result in near)


def test_drafts_are_refused() -> None:
    lm = outpace.LanguageModel(ToyModel())
    for method in ("prompt-lookup", "token-recycling", "jacobi"):
        with pytest.raises(CapabilityError):
            lm.generate([1, 2, 1, 2, 1], law="moi:beta=1", method=method, max_tokens=12)
    with pytest.raises(CapabilityError, match="causal decoders"):
        MixedInputs(ToyModel(attention="full"), 1.0)
