"""What lm-eval asks of a model, against the library's own scores and texts; itself too, where it is installed."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest

import outpace
from outpace.doors import lm_eval as door
from outpace.errors import CapabilityError, ConfigError

needs_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")


@pytest.fixture(scope="module")
def lm() -> outpace.LanguageModel:
    return outpace.load("stories")


def test_continuations_are_scored_as_texts_are(lm: outpace.LanguageModel) -> None:
    """Contexts that are shared, alone, one token long, and longer than a chunk; continuations of all lengths."""
    long = lm.encode("Once upon a time there was a dog. " * 12)
    contexts = [long, lm.encode("Once upon a"), lm.encode("Once upon a"), long, [lm.encode("Once")[0]], long]
    texts = [" time", " time, there was", " stone of doom", " It ran home.", " upon a time", " It ran home." * 20]
    pairs = [(context, lm.encode(text)) for context, text in zip(contexts, texts, strict=True)]
    found = door.score_continuations(lm, pairs)
    for (context, continuation), (value, is_greedy) in zip(pairs, found, strict=True):
        whole = lm.score([*context, *continuation]).log_probs[len(context) :]
        assert value == pytest.approx(sum(one for one in whole if one is not None), abs=1e-6)
        assert is_greedy == (lm.generate(context, max_tokens=len(continuation)).tokens == continuation)
    assert {is_greedy for _, is_greedy in found} == {True, False}


def test_without_lm_eval_one_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    assert door.harness(["run", "--model", "outpace"]) != 0
    assert "lm-eval cannot be imported" in capsys.readouterr().err


def _asked(*arguments: Any) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


@needs_harness
def test_the_harness_model(lm: outpace.LanguageModel) -> None:
    model = door.register()(lm, method="prompt-lookup", batch_size=3)
    pairs = [("Once upon a", f" {word}") for word in ("time", "stone", "dog", "little girl")]
    found = model.loglikelihood([_asked(*pair) for pair in pairs])
    for (context, continuation), (value, _) in zip(pairs, found, strict=True):
        own = lm.score(context + continuation).log_probs[len(lm.encode(context)) :]
        assert value == pytest.approx(sum(one for one in own if one is not None), abs=1e-6)
    text = "Once upon a time there was a dog. It ran home to its mom."
    (rolling,) = model.loglikelihood_rolling([_asked(text)])
    own = lm.score([model.prefix_token_id, *lm.encode(text)])
    assert rolling == pytest.approx(own.log_prob, abs=1e-6)
    wishes = [{"until": ["."], "max_gen_toks": 30}, {"until": ["\n"], "max_gen_toks": 8}]
    asked = [_asked(prompt, wish) for wish in wishes for prompt in ("Once upon a time", "The dog", "Lily and Tom")]
    texts = model.generate_until(asked)
    for one, got in zip(asked, texts, strict=True):
        prompt, wish = one.args
        assert got == lm.generate(prompt, stop=wish["until"], max_tokens=wish["max_gen_toks"]).text


@needs_harness
def test_the_harness_model_is_careful(lm: outpace.LanguageModel) -> None:
    make = door.register()
    with pytest.raises(CapabilityError):
        make("stories-mask")
    with pytest.raises(ConfigError, match="options"):
        make(lm, options="[1]")
    with pytest.raises(ConfigError, match="zzz"):
        make(lm, method="zzz")
    with pytest.raises(ConfigError, match="max_gen_toks"):
        make(lm).generate_until([_asked("Once", {"until": [], "max_gen_toks": 1 << 20})])
    with pytest.raises(ConfigError, match="no argument 'tempature'"):
        make(lm).generate_until([_asked("Once", {"until": [], "max_gen_toks": 4, "tempature": 1.0})])
