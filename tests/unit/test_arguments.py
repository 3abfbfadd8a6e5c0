"""Unusual kinds of values for every argument: taken where the meaning is plain, else one sentence, no raw error."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import outpace
from outpace import LanguageModel, Sampling
from outpace.api.request import Request
from outpace.errors import OutpaceError
from outpace.testing import world

PROMPT = [1, 2, 3]
ODD: list[Any] = [
    None, "5", "x", "", b"5", 5, -1, 2.5, 1e400, float("nan"), True, [], [1], {}, {"a": 1}, {1}, (None,), object(), len,
    np.int64(2), np.float32(0.5), np.array([1, 2]), torch.tensor(2), torch.tensor([0.5, 1.0]), Path("x"), 10**400, 1j,
    ["x", None], [[1], ["a"]], {"5": "x"}, {5: None}, [{"role": "user", "content": "x"}],
]  # fmt: skip
NAMES = sorted({field.name for kind in (Request, Sampling) for field in fields(kind)} | {"on_text", "is_cancelled"})


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return LanguageModel(world.target_for("causal"))


def told(act: Callable[[], Any]) -> Any:
    """Return what an action returns, or the sentence it is refused with; any other error fails the test."""
    try:
        return act()
    except OutpaceError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
        return str(error)


@pytest.mark.parametrize("name", NAMES)
def test_no_value_of_an_argument_ends_in_a_raw_error(name: str, lm: LanguageModel) -> None:
    for value in ODD:
        if (name, type(value)) == ("watch", type(len)) or (name in ("on_text", "is_cancelled") and value is len):
            continue  # a function, which is called
        told(lambda value=value: lm.generate(PROMPT, **({"max_tokens": 2} | {name: value})))


@pytest.mark.parametrize("name", NAMES)
def test_none_is_not_given(name: str, lm: LanguageModel) -> None:
    settings = {"max_tokens": 2} if name != "max_tokens" else {}
    plain = lm.generate(PROMPT, **settings).tokens
    assert lm.generate(PROMPT, **settings | {name: None}).tokens == plain


@pytest.mark.parametrize("kind", [int, float, np.int32, np.float64, np.array, torch.tensor])
def test_numbers_of_any_kind_count(kind: Any, lm: LanguageModel) -> None:
    plain = lm.generate(PROMPT, max_tokens=2, seed=4, top_k=3, temperature=1.0, logit_bias={2: 3.0}, bad_words=[[4, 5]])
    settings = {"max_tokens": kind(2), "seed": kind(4), "top_k": kind(3), "temperature": kind(1)}
    words = [[kind(4), kind(5)]]
    other = lm.generate(PROMPT, logit_bias={2: kind(3), "3": kind(0)}, bad_words=words, **settings)
    assert other.tokens == plain.tokens and other.seed == 4


PROMPTS: list[Any] = [
    tuple(PROMPT), np.array(PROMPT), torch.tensor(PROMPT), [np.int64(t) for t in PROMPT], list(torch.tensor(PROMPT)),
    [1.0, 2.0, 3.0], {"input_ids": PROMPT},
    {"input_ids": torch.tensor([0, 0, *PROMPT]), "attention_mask": [0, 0, 1, 1, 1]},
]  # fmt: skip


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_ids_come_in_many_forms(prompt: Any, lm: LanguageModel) -> None:
    assert lm.generate(prompt, max_tokens=2).tokens == lm.generate(PROMPT, max_tokens=2).tokens


def test_several_prompts_come_in_many_forms(lm: LanguageModel) -> None:
    from transformers import BatchEncoding

    plain = [row.tokens for row in lm.generate([PROMPT, [2]], max_tokens=2)]
    padded = {"input_ids": torch.tensor([PROMPT, [0, 0, 2]]), "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 1]])}
    for prompts in ([torch.tensor(PROMPT), np.array([2])], padded, BatchEncoding(padded)):
        assert [row.tokens for row in lm.generate(prompts, max_tokens=2)] == plain


@pytest.mark.parametrize("act", ["generate", "infill", "stream"])
def test_no_prompt_ends_in_a_raw_error(act: str, lm: LanguageModel) -> None:
    masked = LanguageModel(world.target_for("causal")) if act != "infill" else lm
    for prompt in (*ODD, [True], ["x", 3], [[]], [[[1]]], iter([1]), range(0)):
        found = told(lambda prompt=prompt: getattr(masked, act)(prompt, **{} if act == "infill" else {"max_tokens": 2}))
        if act == "stream" and not isinstance(found, str):
            told(lambda found=found: list(found))


@pytest.mark.parametrize("method", ["prompt-lookup", "draft-model", "lookahead", "layer-skip"])
def test_no_value_of_an_option_ends_in_a_raw_error(method: str, lm: LanguageModel) -> None:
    from outpace.methods.registry import load_method

    for field in fields(load_method(method)):
        for value in ODD:
            told(lambda name=field.name, value=value: load_method(method).from_settings({name: value}))
    assert load_method(method).from_settings({"draft_len" if method != "lookahead" else "window": np.float64(3)})


@pytest.mark.parametrize("name", ["model", "dtype", "device", "is_compiled", "card", "is_checked", "context"])
def test_no_argument_of_load_ends_in_a_raw_error(name: str, tiny: Path) -> None:
    for value in (v for v in ODD if name != "model" or not isinstance(v, (str, Path))):
        if name == "context" and isinstance(value, int) and value > 10**6:
            continue
        told(lambda value=value: outpace.load(**{"model": tiny, "is_compiled": False} | {name: value}))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bias", [1e38, 1e39, 1e308])
def test_a_bias_beyond_float32_writes_its_token(bias: float, temperature: float, tiny: Path) -> None:
    for dtype in ("float32", "bfloat16", "float64"):
        lm = outpace.load(tiny, dtype=dtype, is_compiled=False)
        for token, settings in (
            (7, {"logit_bias": {7: bias}}),
            (7, {"logit_bias": {7: bias}, "frequency_penalty": 2.0}),
        ):
            assert (
                lm.generate([5], max_tokens=2, temperature=temperature, ignore_eos=True, **settings).tokens[0] == token
            )
        held = {"presence_penalty": bias, "frequency_penalty": bias}
        found = lm.generate([5], max_tokens=2, temperature=temperature, ignore_eos=True, **held)
        assert len(set(found.tokens)) == 2 and found.finish_reason == "length"


@pytest.mark.parametrize("act", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_language_model_is_not_copied(act: Callable[[Any], Any], lm: LanguageModel) -> None:
    assert "cannot be copied" in told(lambda: act(lm))


def test_a_language_model_may_stand_for_its_adapter(lm: LanguageModel) -> None:
    drafter = LanguageModel(world.drafter_for("causal"))
    result = lm.generate(PROMPT, max_tokens=2, method="draft-model", models={"draft": drafter})
    assert result.tokens == lm.generate(PROMPT, max_tokens=2).tokens
