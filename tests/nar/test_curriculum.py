"""The curriculum: phrases are all consistent ones, and words, phrases and sentences follow at set steps."""

from itertools import product

import numpy as np
import pytest

from outpace.errors import ConfigError
from outpace.train.nar.curriculum import Curriculum, consistent_phrases
from outpace.train.pairs import encode_pairs, train_pair_tokenizer

PAIRS = [
    ("a man sleeps", "ein Mann schläft"),
    ("a woman sleeps", "eine Frau schläft"),
    ("a man runs", "ein Mann rennt"),
    ("the woman runs", "die Frau rennt"),
    ("the dog sleeps .", "der Hund schläft ."),
]


def _all_consistent(links: list, sizes: tuple, longest: int) -> set:
    """Return the pairs of spans as defined: some link inside, no link that leaves."""
    found = set()
    for first, last, low, high in product(*(range(size) for size in sizes for _ in range(2))):
        inside = [(first <= i <= last, low <= j <= high) for i, j in links]
        is_short = 0 <= last - first < longest and 0 <= high - low < longest
        if is_short and any(a and b for a, b in inside) and all(a == b for a, b in inside):
            found.add((first, last, low, high))
    return found


@pytest.mark.parametrize("longest", [1, 2, 3, 9])
def test_phrases_are_all_that_the_definition_allows(longest: int) -> None:
    generator = np.random.default_rng(0)
    for _ in range(40):
        sizes = int(generator.integers(1, 6)), int(generator.integers(1, 6))
        links = sorted({(int(generator.integers(sizes[0])), int(generator.integers(sizes[1]))) for _ in range(4)})
        found = consistent_phrases(links, sizes, longest)
        assert len(found) == len(set(found))
        assert set(found) == _all_consistent(links, sizes, longest)
    assert consistent_phrases([], (3, 3), 2) == []


def test_words_and_phrases_are_those_of_the_texts() -> None:
    words, phrases = Curriculum(longest=2, drawn=9).units(PAIRS, seed=0)
    assert (" man", " Mann") in words
    assert ("a", "ein") in words
    assert (" dog sleeps", " Hund schläft") in phrases
    assert all(len(source.split()) <= 2 and len(target.split()) <= 2 for source, target in phrases)
    for source, target in [*words, *phrases]:
        assert any(source in text and target in translation for text, translation in PAIRS)
    few = Curriculum(longest=2, drawn=1).units(PAIRS, seed=0)
    assert [len(part) for part in few] == [len(PAIRS), len(PAIRS)]
    assert few == Curriculum(longest=2, drawn=1).units(PAIRS, seed=0)


def test_the_steps_switch_where_they_are_set() -> None:
    tokenizer = train_pair_tokenizer(PAIRS, 300)
    sentences = encode_pairs(tokenizer, PAIRS, budget=64, longest=96, seed=0)
    curriculum = Curriculum(words=0.2, phrases=0.3, longest=2)
    assert curriculum.switches(10) == (2, 5)
    staged = curriculum.staged(sentences, tokenizer, PAIRS, steps=10)
    texts = [{tuple(tokenizer.decode(row.tolist()) for row in staged.batch(step).sources)} for step in range(10)]
    kinds = dict(zip(("words", "phrases"), curriculum.units(PAIRS, sentences.seed), strict=True))
    known = {name: {source for source, _ in part} for name, part in kinds.items()}
    known["sentences"] = {source for source, _ in PAIRS}

    def kind_of(step: int) -> str:
        (rows,) = texts[step]
        return next(name for name, part in known.items() if set(rows) <= part)

    assert [kind_of(step) for step in range(10)] == ["words"] * 2 + ["phrases"] * 3 + ["sentences"] * 5
    # What the sentences are, and how they begin, is as without a curriculum.
    assert (staged.batch(5).sources == sentences.batch(0).sources).all()
    assert len(staged.sources) == len(sentences.sources)


def test_no_curriculum_is_sentences_from_the_start_and_shares_are_checked() -> None:
    tokenizer = train_pair_tokenizer(PAIRS, 300)
    sentences = encode_pairs(tokenizer, PAIRS, budget=64, longest=96, seed=0)
    staged = Curriculum(words=0.0, phrases=0.0).staged(sentences, tokenizer, PAIRS, steps=10)
    assert (staged.batch(0).sources == sentences.batch(0).sources).all()
    with pytest.raises(ConfigError, match="words"):
        Curriculum(words=1.5)
