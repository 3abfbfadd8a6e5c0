"""Substrings of a collection: the index by brute force, beams that write nothing else, passages and words by hand."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from outpace.api.engine import LanguageModel, load
from outpace.api.passages import PassageFinder
from outpace.bench import passages as bench
from outpace.cli.retrieve import read_passages
from outpace.errors import CapabilityError, ConfigError
from outpace.retrieve import fm_index
from outpace.retrieve.bm25 import Bm25
from outpace.retrieve.fm_index import FmIndex
from outpace.retrieve.ngrams import NGram, best_passages, weigh
from outpace.retrieve.substrings import Substrings
from outpace.testing import ToyModel

VOCAB = 7


def collection(seed: int, size: int = 40) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(VOCAB - 1) for _ in range(draw.randrange(size))] for _ in range(9)] + [[]]


def occurrences(texts: list[list[int]], ngram: list[int]) -> list[tuple[int, int]]:
    size = len(ngram)
    return [
        (number, at)
        for number, text in enumerate(texts)
        for at in range(len(text) - size + 1)
        if text[at : at + size] == ngram
    ]


@pytest.mark.parametrize("block", [4, 4096])
def test_the_index_is_brute_force(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fm_index, "_BLOCK", block)
    texts, draw = collection(block), random.Random(5)
    index = FmIndex(texts, VOCAB)
    assert index.num_tokens == sum(map(len, texts)) and index.num_texts == len(texts)
    for _ in range(300):
        ngram = [draw.randrange(VOCAB) for _ in range(draw.randrange(5))]
        found = occurrences(texts, ngram)
        rows = index.find(ngram)
        if ngram:
            assert index.count(ngram) == len(found)
            numbers = [number for number, _ in found]
            assert index.texts(rows) == {number: numbers.count(number) for number in numbers}
        behind = {texts[number][at + len(ngram)] for number, at in found if at + len(ngram) < len(texts[number])}
        assert {token for token, is_one in enumerate(index.following(rows)) if is_one} == (
            behind if ngram else {token for text in texts for token in text}
        )
    assert len(index.texts(index.find([0]), most=2)) <= 2
    assert index.extend(index.rows, VOCAB) == (0, 0) and index.extend(index.rows, -1) == (0, 0)


def test_a_constraint_is_a_function_of_its_tokens() -> None:
    texts = collection(1)
    rules = Substrings(FmIndex(texts, VOCAB), VOCAB + 2)  # a padded vocabulary
    state, text = rules.start(), texts[0]
    assert not state.is_complete and not state.is_final
    for at, token in enumerate(text[:6]):
        other = state.fork()
        assert state.push(token) and state.allowed().shape == (VOCAB + 2,)
        assert state.is_complete and list(other.tokens) == text[:at]
    state.back(2)
    again = rules.start()
    assert all(again.push(token) for token in text[:4])
    assert state.rows == again.rows and bool((state.allowed() == again.allowed()).all())
    assert not again.push(VOCAB - 1) and again.tokens == text[:4]
    last = rules.start()
    assert all(last.push(token) for token in text)
    assert last.is_final == (not any(state_allowed for state_allowed in last.allowed().tolist()))


@pytest.mark.parametrize("method", ["beam-search", "diverse-beam-search", "autoregressive", "prompt-lookup"])
def test_whatever_is_written_occurs_in_the_collection(method: str) -> None:
    texts = collection(2)
    lm = LanguageModel(ToyModel(VOCAB, 2, hidden=4), name="toy", end_tokens=(VOCAB - 1,))
    rules = Substrings(FmIndex(texts, VOCAB), VOCAB)
    options = {"beams": 4, "n_best": 4} if "beam" in method else {}
    found = lm.generate([1, 2], method=method, options=options, constraint=rules, max_tokens=6, ignore_eos=True)
    for one in found if isinstance(found, list) else [found]:
        assert one.tokens and occurrences(texts, one.tokens)


def test_weights_and_scores_are_those_of_the_paper() -> None:
    texts = [[1, 2, 3], [1, 2], [4, 5]]
    index = FmIndex(texts, VOCAB)
    first, second = weigh(index, [([1, 2, 6], [math.log(0.5), math.log(0.8), 0.0]), ([4], [math.log(0.05)])])
    assert (first.tokens, second.tokens) == ((1,), (1, 2))  # [4] is likelier in the collection than given the query
    odds = math.log(0.4 * (1 - 2 / 7) / (2 / 7 * 0.6))
    by_hand = {(1,): math.log(0.5 * (5 / 7) / (2 / 7 * 0.5)), (1, 2): odds}
    assert {one.tokens: one.weight for one in (first, second)} == pytest.approx(by_hand)
    given = [NGram((1, 2), index.find([1, 2]), 3.0), NGram((2, 3), index.find([2, 3]), 2.0)]
    best, other = best_passages(index, given, 5)
    assert (best.number, other.number) == (0, 1)
    assert best.score == pytest.approx(9 + 4 * (0.2 + 0.8 / 2)) and other.score == pytest.approx(9)


def test_bm25_is_its_formula() -> None:
    passages = ["the cat sat", "the dog and the other dog ran far", "birds"]
    scores = [Bm25(passages).score("The dog!", number) for number in range(3)]
    mean = (3 + 8 + 1) / 3
    scale = 1.2 * (0.25 + 0.75 * 8 / mean)
    dog, the = math.log(1 + 2.5 / 1.5), math.log(1 + 1.5 / 2.5)
    assert scores[1] == pytest.approx(dog * 2 * 2.2 / (2 + scale) + the * 2 * 2.2 / (2 + scale))
    assert scores[2] == 0 and Bm25(passages).rank("dog", 2)[0][0] == 1


def test_a_model_finds_the_passage_that_it_would_write(tmp_path: Path) -> None:
    lm = load("stories")
    passages = [
        "The king counted his gold in the dark tower.",
        "Once upon a time, there was a little girl named Lily.",
        "Rain fell on the harbour while the ships came home.",
    ]
    finder = PassageFinder(lm, passages, prompt="Tell a story. {query}", beams=4, length=6)
    found = finder.find("Once upon a time, there was")
    assert found[0].number == 1
    for ngram in found[0].ngrams:
        assert finder.decode(ngram.tokens) in " " + passages[1]
    asked = {"data": [{"paragraphs": [{"context": text, "qas": [{"question": text[:20]}]} for text in passages]}]}
    (tmp_path / "q.json").write_text(json.dumps(asked))
    texts, questions = bench.read_questions(tmp_path / "q.json")
    assert texts == passages and questions[1] == (passages[1][:20], 1)
    rows = bench.measure_hits(lm, texts, questions, beams=2, length=2)
    assert [row["way"] for row in rows] == ["n-grams of stories", "BM25", "chance"] and rows[1]["hits"] == 100
    (tmp_path / "a.txt").write_text("\n\n".join(passages))
    assert read_passages([tmp_path / "a.txt"]) == passages
    told = bench.measure_speed(lm, [tmp_path / "a.txt"], repeats=40)
    assert told["tokens"] > 20 and all(told[name] > 0 for name in ("build_s", "step_us", "following_us"))


def test_bad_input_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ConfigError, match="no text"):
        read_passages([tmp_path / "empty.txt"])
    with pytest.raises(ConfigError, match="no text"):
        FmIndex([[], []], VOCAB)
    with pytest.raises(ConfigError, match="outside"):
        FmIndex([[VOCAB]], VOCAB)
    lm = load("stories")
    for given, word in (({"beams": 3}, "beams"), ({"length": 0}, "length"), ({"prompt": "x"}, "query")):
        with pytest.raises(ConfigError, match=word):
            PassageFinder(lm, ["a text"], **given)
    with pytest.raises(CapabilityError, match="causal"):
        PassageFinder(load("stories-mask"), ["a text"])
    (tmp_path / "q.json").write_text("{}")
    with pytest.raises(ConfigError, match="SQuAD"):
        bench.read_questions(tmp_path / "q.json")
    with pytest.raises(ConfigError, match="corpus"):
        bench.main([])
