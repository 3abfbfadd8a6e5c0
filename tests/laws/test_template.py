"""Templates: what a law lets through against every text there is, drafts that obey it, and words in their places."""

from __future__ import annotations

import asyncio
import functools
import itertools
from typing import Any

import pytest
import torch

from outpace import Ask, Engine, LanguageModel
from outpace.bench.templates import held, main
from outpace.cli.values import prompt_text
from outpace.errors import CapabilityError, ConfigError
from outpace.laws.base import Site
from outpace.laws.template import Coverage, CoverageState, Template
from outpace.testing.toy import ToyEncoderDecoder, ToyModel
from outpace.text.tokenizer import Tokenizer
from outpace.train.data import EOS_ID
from outpace.train.pairs import START_ID, train_pair_tokenizer
from outpace.train.templates import TEMPLATES, as_template

VOCAB, END = 6, 5
WANTED, OTHERS = (1, 3), (4,)


def allowed_texts(limit: int) -> set[tuple[int, ...]]:
    """Every text that is what the law asks for: it ends once, or is as long as it may be."""
    found = set()
    for size in range(1, limit + 1):
        for text in itertools.product(range(VOCAB), repeat=size):
            is_whole = text[-1] == END or size == limit
            if is_whole and END not in text[:-1] and not {*OTHERS} & {*text}:
                if all(text.count(token) == 1 for token in WANTED):
                    found.add(text)
    return found


@pytest.mark.parametrize("limit", [2, 3, 5])
def test_what_may_come_is_what_some_allowed_text_goes_on_with(limit: int) -> None:
    coverage = Coverage(WANTED, OTHERS)
    law = torch.randn(VOCAB, generator=torch.Generator().manual_seed(limit), dtype=torch.float64)
    texts, seen = allowed_texts(limit), set[tuple[int, ...]]()

    def walk(state: CoverageState, text: tuple[int, ...]) -> None:
        if text and (text[-1] == END or len(text) == limit):
            seen.add(text)
            return
        logits = law.clone()
        state.apply(logits)
        may = {token for token in range(VOCAB) if bool(logits[token].isfinite())}
        assert may == {other[len(text)] for other in texts if other[: len(text)] == text}
        assert all(logits[token] == law[token] for token in may)
        for token in may:
            walk(state.after(token), (*text, token))

    walk(coverage.start([0, 0], [END], 2 + limit), ())
    assert seen == texts and texts


PAIRS = [("<0> dog <1> park", "The <0> ran to the <1>."), ("<0> a big red ball <1> tree", "A <1> and <0>!")] * 9


@functools.cache
def model() -> LanguageModel:
    engine = train_pair_tokenizer(PAIRS, 300, TEMPLATES.tags, True)
    tokenizer = Tokenizer(engine, {"eos_token": "<|endoftext|>"})
    target = ToyEncoderDecoder(vocab_size=tokenizer.vocab_size, seed=3, sharpness=2.0)
    target.start_token = START_ID
    return LanguageModel(target, tokenizer, end_tokens=[EOS_ID])


@pytest.mark.parametrize("method", ["jacobi", "token-recycling", "prompt-lookup"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_obey_and_every_keyword_stands_once(method: str, temperature: float) -> None:
    lm, law = model(), Template(keywords="dog+big red ball+tree")
    numbers = law.numbers(Site(lm.target, lm.tokenizer, "toy", None, lambda _: lm.target))[:3]
    given: dict[str, Any] = {"law": law, "temperature": temperature, "max_tokens": 16, "num_samples": 3}
    plain = lm.generate("", **given)
    drafted = lm.generate("", method=method, **given)
    assert [one.tokens for one in drafted] == [one.tokens for one in plain]
    for result in plain:
        assert sorted(token for token in result.tokens if token in numbers) == sorted(numbers)
        assert all(word in result.text for word in ("dog", "big red ball", "tree")) and "<" not in result.text


def test_beams_obey_too() -> None:
    result = model().generate("", law="template:keywords=dog+tree", method="beam-search", max_tokens=12)
    assert "dog" in result.text and "tree" in result.text


def test_without_keywords_it_is_plain_decoding() -> None:
    lm = model()
    given: dict[str, Any] = {"temperature": 0.9, "seed": 4, "max_tokens": 20}
    assert lm.generate("dog", law="template:", **given).tokens == lm.generate("dog", **given).tokens


def test_words_stand_where_their_numbers_are() -> None:
    lm, law = model(), Template(keywords="dog+park")
    site = Site(lm.target, lm.tokenizer, "toy", None, lambda _: lm.target)
    speller, own = law.tokenizer(site), lm.tokenizer
    assert speller is not None and own is not None
    written = own.encode("The <1> has a <0>.", False)
    assert speller.decode(written) == "The park has a dog." and own.decode(written) == "The has a ."
    assert speller.encode("") == own.encode("<0> dog <1> park")
    assert speller.encode("Now:") == own.encode("Now: <0> dog <1> park")
    streamed = "".join(part for part in lm.stream("", law=law, max_tokens=10, temperature=1.0))
    assert streamed == lm.generate("", law=law, max_tokens=10, temperature=1.0).text


def test_pairs_are_texts_with_their_words_numbered() -> None:
    pair = as_template(["big", "dog"], "A big, bigger dog.")
    assert pair is not None
    source, target = pair
    words = dict(zip(source.split()[::2], source.split()[1::2], strict=True))
    assert target.replace("<0>", words["<0>"]).replace("<1>", words["<1>"]) == "A big, bigger dog."
    assert target in ("A <0>, bigger <1>.", "A <1>, bigger <0>.")
    assert as_template(["dog", "big"], "A big dog.") is None and as_template(["a", "a"], "a a") is None


@pytest.mark.parametrize(
    ("keywords", "room", "reason"),
    [
        ("dog++cat", 9, "is no list"),
        ("a+b+c+d+e+f+g", 20, "is no list"),
        ("dog+park+tree", 2, "too few"),
    ],
)
def test_keywords_that_cannot_be_are_refused(keywords: str, room: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        model().generate("", law=f"template:keywords={keywords}", max_tokens=room)


def test_a_model_without_numbers_is_refused() -> None:
    lm = LanguageModel(ToyModel(vocab_size=300), model().tokenizer)
    with pytest.raises(CapabilityError, match="writes no templates"):
        lm.generate("dog", law="template:keywords=dog")


def test_shares_of_keywords_are_counted_by_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert held("The dog ran to parks.", ["dog", "park"]) == 0.5 and held("a big-eyed cat", ["big-eyed"]) == 1
    assert main(["stories", "--count", "0"]) == 2
    assert "0 texts" in capsys.readouterr().err


def test_an_engine_writes_the_library_s_texts() -> None:
    given: dict[str, Any] = {"law": "template:keywords=dog+tree", "temperature": 1.0, "max_tokens": 12, "seed": 2}
    want = model().generate("", **given)

    async def ask() -> Any:
        async with Engine(model()) as engine:
            return await (await engine.submit(Ask(prompt="", arguments=given))).results()

    [found] = asyncio.run(ask())
    assert (found.tokens, found.text) == (want.tokens, want.text)


def test_a_prompt_may_be_empty_where_a_law_brings_what_is_read() -> None:
    assert prompt_text("", may_be_empty=True) == ""
    with pytest.raises(ConfigError, match="empty"):
        prompt_text("")
