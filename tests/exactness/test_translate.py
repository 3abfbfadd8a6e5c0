"""Encoder-decoder targets: every exact method that fits the zoo's translator writes what plain decoding writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace.errors import CapabilityError
from outpace.methods.misfit import misfits
from outpace.methods.registry import built_in_names, load_method
from outpace.testing.respelled import respell
from outpace.types import Guarantee

pytest.importorskip("transformers")
MODEL = os.environ.get("OUTPACE_TEST_TRANSLATOR", "translate")
SENTENCES = [
    "Ein Mann fährt Fahrrad.",
    "Ich glaube nicht, dass Tom weiß, wie man diese Maschine bedient. Hast du ihm gesagt, wo das Buch liegt?",
    "Hallo!",
    "Die Kinder spielen im Garten, weil das Wetter heute so schön ist.",
]
# Laws one by one are the contract tests' matter; here the source is new.
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.2, "top_p": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "seed": 5},
}
LENGTH = 28


@pytest.fixture(scope="module")
def translator() -> outpace.LanguageModel:
    return outpace.load(MODEL, dtype="float64")


@pytest.fixture(scope="module")
def plain(translator: outpace.LanguageModel) -> dict[str, list[list[int]]]:
    """Each sentence alone."""
    return {
        way: [translator.generate(text, max_tokens=LENGTH, **settings).tokens for text in SENTENCES]
        for way, settings in WAYS.items()
    }


def test_plain_decoding_is_that_of_transformers(plain: dict[str, list[list[int]]]) -> None:
    theirs = outpace.load(f"hf:{MODEL}", dtype="float64")
    assert [theirs.generate(text, max_tokens=LENGTH).tokens for text in SENTENCES] == plain["greedy"]


METHODS = {name: load_method(name)() for name in built_in_names()}
# Trained drafters read one target's states, and none was trained for this one.
EXACT = [
    name
    for name, one in METHODS.items()
    if one.guarantee is Guarantee.EXACT and one.family != "search" and not (one.needs.head or name == "pard")
]
MUST_FIT = {"auto", "autoregressive", "draft-model", "jacobi", "lookahead", "prompt-lookup", "suffix"}


@pytest.mark.parametrize("name", EXACT)
def test_exact_methods_write_the_same_translations(
    name: str, translator: outpace.LanguageModel, plain: dict[str, list[list[int]]]
) -> None:
    lacks = misfits(load_method(name)(), translator.target.capabilities)
    for way, settings in WAYS.items():
        try:
            found = translator.generate(SENTENCES, method=name, max_tokens=LENGTH, **settings)
        except CapabilityError as error:  # what a method takes is told by its needs, or when it starts
            assert name not in MUST_FIT
            pytest.skip(str(error))
        assert not lacks
        assert [result.tokens for result in found] == plain[way], way


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("jacobi", {"mode": "block", "window": 6}),
    ("jacobi", {"mode": "hybrid", "window": 12}),
    ("draft-model", {"tree_width": 2, "draft_len": 3}),
    ("draft-model", {"min_confidence": 0.4}),
    ("bild", {"fallback": 1.0}),
    ("bild", {"fallback": 0.0, "rollback": 0.0}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_settings_keep_the_translations(
    name: str, options: dict[str, Any], translator: outpace.LanguageModel, plain: dict[str, list[list[int]]]
) -> None:
    for way in ("greedy", "sampled"):
        found = translator.generate(SENTENCES, method=name, options=options, max_tokens=LENGTH, **WAYS[way])
        assert [result.tokens for result in found] == plain[way], way


def test_translations_end_by_themselves(translator: outpace.LanguageModel) -> None:
    results = translator.generate(SENTENCES, max_tokens=60)
    assert [result.finish_reason for result in results] == ["eos"] * len(SENTENCES)


def test_the_small_model_alone_by_extreme_thresholds(translator: outpace.LanguageModel) -> None:
    small = outpace.load(outpace.zoo.drafter_of(MODEL), dtype="float64")
    wanted = [result.tokens for result in small.generate(SENTENCES, max_tokens=40)]
    options = {"fallback": 0.0, "rollback": float("inf"), "draft_len": 5}
    found = translator.generate(SENTENCES, method="bild", options=options, max_tokens=40)
    assert [result.tokens for result in found] == wanted


def test_drafts_of_the_small_model_are_accepted(translator: outpace.LanguageModel) -> None:
    results = translator.generate(SENTENCES, method="draft-model", max_tokens=40)
    assert sum(result.usage.num_accepted for result in results) > 0
    assert sum(result.usage.num_steps for result in results) < sum(len(result.tokens) for result in results)


@pytest.mark.parametrize("mode", ["slem", "tli"])
def test_a_small_model_of_another_vocabulary_reads_the_source_too(
    mode: str, translator: outpace.LanguageModel, plain: dict[str, list[list[int]]], tmp_path: Path
) -> None:
    options = {"draft": str(respell(outpace.zoo.path("translate-draft"), tmp_path / "other", 200)), "mode": mode}
    for way in ("greedy", "sampled"):
        settings = {"accept_rule": "match"} if way == "sampled" else {}
        found = translator.generate(
            SENTENCES, method="cross-vocab", options={**options, **settings}, max_tokens=LENGTH, **WAYS[way]
        )
        assert [result.tokens for result in found] == plain[way], way
        if way == "greedy":
            assert sum(result.usage.num_accepted for result in found) > 10


def test_a_text_that_is_there_at_once_saves_a_third_of_the_forwards(translator: outpace.LanguageModel) -> None:
    plainly = translator.generate(MORE, max_tokens=40)
    found = translator.generate(MORE, method="generalised-aggressive", max_tokens=40)
    assert [result.tokens for result in found] == [result.tokens for result in plainly]
    steps = [sum(result.usage.num_steps for result in results) for results in (plainly, found)]
    assert steps[0] >= 1.5 * steps[1], steps


MORE = [
    "Ich habe heute keine Zeit, weil ich arbeiten muss.",
    "Sie wohnt mit ihrer Schwester in einem kleinen Haus.",
    "Kannst du mir bitte sagen, wo der Bahnhof ist?",
    "Tom hat gestern ein neues Auto gekauft.",
    "Wir werden morgen nach Boston fahren, wenn es nicht regnet.",
    "Er spricht besser Englisch als ich.",
    "Warum hast du mir nichts davon gesagt?",
    "Das ist das beste Buch, das ich je gelesen habe.",
]


@pytest.mark.parametrize("mode", ["jacobi", "block", "hybrid"])
def test_parallel_decoding_takes_fewer_iterations_than_tokens(mode: str, translator: outpace.LanguageModel) -> None:
    options = {"mode": mode, "window": 8, "filler": 1}
    wanted = translator.generate(MORE, max_tokens=40)
    found = translator.generate(MORE, method="jacobi", options=options, max_tokens=40)
    assert [result.tokens for result in found] == [result.tokens for result in wanted]
    assert sum(result.usage.num_steps for result in found) < sum(len(result.tokens) for result in wanted)


def test_thresholds_between_the_extremes_save_large_calls(translator: outpace.LanguageModel) -> None:
    calls = []
    for fallback in (0.3, 0.6, 0.9):
        results = translator.generate(MORE, method="bild", options={"fallback": fallback}, max_tokens=40)
        calls.append(sum(result.usage.num_steps for result in results) / sum(len(result.tokens) for result in results))
    assert calls == sorted(calls) and calls[0] < 0.5 and calls[-1] < 0.9
