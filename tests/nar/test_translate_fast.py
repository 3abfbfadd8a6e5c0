"""The shipped translator of one pass: what it is, how it answers, and as a drafter of its teacher."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import outpace
from outpace import zoo
from outpace.errors import CapabilityError

NAME = "translate-fast"
SENTENCES = ["Ein Mann fährt Fahrrad.", "Ich habe keine Ahnung, was du meinst.", "Wo ist der Bahnhof?"]


@pytest.fixture(scope="module")
def fast() -> outpace.LanguageModel:
    return outpace.load(NAME, dtype="float64")


def test_its_card_tells_what_it_is() -> None:
    card = zoo.card(NAME)
    assert card.method == "one-pass" and card.objective == "written" and card.parent == "translate"
    assert card.licence == "Apache-2.0" and card.sources == ("tatoeba-pairs",)
    assert card.num_bytes <= 4_000_000 and sum(zoo.card(name).num_bytes for name in zoo.names()) <= 64_000_000
    assert zoo.drafter_of("translate") == "translate-draft"
    stored = load_file(zoo.path(NAME) / "model.safetensors")
    assert stored["embed_tokens.weight"].dtype == torch.int8


def test_a_text_takes_one_pass(fast: outpace.LanguageModel) -> None:
    every = fast.generate(SENTENCES, method="one-pass", max_tokens=60)
    for sentence, result in zip(SENTENCES, every, strict=True):
        alone = fast.generate(sentence, method="one-pass", max_tokens=60)
        assert alone.tokens == result.tokens and alone.usage.num_steps == 1 and result.finish_reason == "eos"
    searched = fast.generate(SENTENCES, method="ctc-beam-search", max_tokens=60)
    assert all(result.text and result.usage.num_steps == 1 for result in searched)


@pytest.mark.parametrize("method", ["generalised-aggressive", "lattice-drafts"])
def test_its_teacher_takes_its_text_as_a_draft(method: str) -> None:
    teacher = outpace.load("translate", dtype="float64")
    plain = teacher.generate(SENTENCES, method="autoregressive", max_tokens=60)
    options = {"draft": NAME, "as_text": True}
    found = teacher.generate(SENTENCES, method=method, options=options, max_tokens=60)
    assert [result.tokens for result in found] == [result.tokens for result in plain]
    assert sum(result.usage.num_accepted for result in found) > 0
    with pytest.raises(CapabilityError, match="token by token"):
        teacher.generate(SENTENCES, method=method, options={"draft": "translate-draft", "as_text": True})
