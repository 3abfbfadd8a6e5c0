"""The law `hmm` on the model that ships: keywords hold, drafts change nothing, mistakes are told in a sentence."""

import dataclasses
import sys

import pytest

import outpace
from outpace.errors import ConfigError, OutpaceError
from outpace.laws.hmm import Hmm
from outpace.laws.registry import law_names, load_law

PROMPTS = ["Once upon a time", "One day, Tom"]


@pytest.fixture(scope="module")
def lm() -> outpace.LanguageModel:
    return outpace.load("stories", dtype="float64", is_compiled=False)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_finished_text_holds_the_keywords(lm: outpace.LanguageModel, temperature: float) -> None:
    reasons = set()
    for max_tokens in (8, 40):
        asked = {"max_tokens": max_tokens, "temperature": temperature, "seed": max_tokens}
        for result in lm.generate(PROMPTS, law="hmm:keywords=dog|cat+red ball", **asked):
            assert "dog" in result.text or "cat" in result.text
            assert "red ball" in result.text
            reasons.add(result.finish_reason)
    assert "length" in reasons


def test_no_weight_is_plain_decoding(lm: outpace.LanguageModel) -> None:
    asked = {"max_tokens": 24, "temperature": 0.9, "seed": 3}
    plain, law = lm.generate(PROMPTS, **asked), Hmm(keywords="dog", weight=0.0)
    assert [r.tokens for r in lm.generate(PROMPTS, law=law, **asked)] == [r.tokens for r in plain]
    guided = lm.generate(PROMPTS, law=Hmm(keywords="zebra"), **asked)
    assert all(a.tokens != b.tokens for a, b in zip(guided, plain, strict=True))


@pytest.mark.parametrize("method", ["prompt-lookup", "token-recycling"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_change_nothing(lm: outpace.LanguageModel, method: str, temperature: float) -> None:
    asked = {"max_tokens": 20, "temperature": temperature, "law": "hmm:keywords=dog+park,reach=4"}
    prompts = ["The cat sat on the mat. " * 4, *PROMPTS]
    plain, drafted = lm.generate(prompts, **asked), lm.generate(prompts, method=method, **asked)
    assert [r.tokens for r in drafted] == [r.tokens for r in plain]
    assert sum(r.usage.num_accepted for r in drafted) > 0
    assert lm.generate(prompts[1], method=method, **asked).tokens == plain[1].tokens


def test_beams_obey_it(lm: outpace.LanguageModel) -> None:
    result = lm.generate(PROMPTS[0], method="beam-search", max_tokens=16, law="hmm:keywords=dog")
    best = result[0] if isinstance(result, list) else result
    assert "dog" in best.text


def test_the_laws_that_ship_declare_themselves() -> None:
    for name in law_names():
        kind = load_law(name)
        law = kind()
        assert kind.name == name and kind.summary
        assert sys.modules[kind.__module__].PAPERS
        told = {key: "+".join(map(str, v)) if isinstance(v, tuple) else str(v) for key, v in law.to_dict().items()}
        assert kind.from_settings(told) == law
        assert dataclasses.fields(kind)


@pytest.mark.parametrize(
    ("law", "more", "message"),
    [
        ("hmm:keywords=dog+park+cat", {"max_tokens": 2}, "2 tokens are too few for the keywords dog, park, cat"),
        ("hmm:keywords=dog++cat", {}, "is empty"),
        ("hmm:keywords=dog,weight=-1", {}, "weight is -1.0"),
        ("hmm:keyword=dog", {}, "The law 'hmm' has no option 'keyword'"),
        ("hmn", {}, "There is no law 'hmn'"),
        ("hmm:keywords", {}, "is no option"),
        ("hmm:keywords=dog,model=nowhere", {}, "nowhere"),
        (3, {}, "law"),
    ],
)
def test_mistakes_are_told(lm: outpace.LanguageModel, law: object, more: dict[str, int], message: str) -> None:
    with pytest.raises(OutpaceError, match=message):
        lm.generate(PROMPTS[0], law=law, **more)  # type: ignore[call-overload]


def test_a_keyword_that_is_forbidden_is_told(lm: outpace.LanguageModel) -> None:
    barred = [lm.encode(text, is_special=False) for text in (" dog", "dog")]
    with pytest.raises(ConfigError, match="'dog' is wanted and forbidden"):
        lm.generate(PROMPTS[0], law="hmm:keywords=dog", bad_words=barred)


def test_a_law_with_a_grammar_that_excludes_it_ends_with_an_error(lm: outpace.LanguageModel) -> None:
    pytest.importorskip("llguidance")
    result = lm.generate(PROMPTS[0], law="hmm:keywords=dog", regex="[x ]*", max_tokens=6)
    assert result.finish_reason == "error"
    assert any("forbidden by a law" in note for note in result.notes)


def test_a_canvas_has_no_next_token() -> None:
    with pytest.raises(ConfigError, match="writes in any order"):
        outpace.load("stories-mask").generate("Once", law="hmm:keywords=dog", method="masked-diffusion", max_tokens=8)
