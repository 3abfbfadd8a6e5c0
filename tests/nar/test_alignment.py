"""Word alignment: EM equals a slow one, links are those of the words, and both directions join as published."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from outpace.errors import ConfigError
from outpace.train.nar.alignment import Aligner, split_words, symmetrised, word_ids

TEXTS = [
    ("a man sleeps", "ein Mann schläft"),
    ("a woman sleeps", "eine Frau schläft"),
    ("a man runs", "ein Mann rennt"),
    ("the woman runs", "die Frau rennt"),
    ("a dog runs home", "ein Hund rennt nach Hause"),
    ("the dog sleeps", "der Hund schläft"),
]


def _ids() -> tuple[list, list]:
    return tuple(word_ids(*([split_words(pair[side]) for pair in TEXTS] for side in (0, 1))))


def _slow(aligner: Aligner, sources: list, targets: list) -> dict:
    """Return p(target | source) as the papers write it, over dictionaries; None is the empty word."""
    law = defaultdict(lambda: 1.0)
    for _ in range(aligner.rounds):
        counts, totals = defaultdict(float), defaultdict(float)
        for source, target in zip(sources, targets, strict=True):
            m, n = len(target), len(source)
            for j, said in enumerate(target.tolist()):
                near = [np.exp(-aligner.sharpness * abs((j + 1) / m - (i + 1) / n)) for i in range(n)]
                priors = [(1 - aligner.empty) * value / sum(near) for value in near] + [aligner.empty]
                words = [*source.tolist(), None]
                joint = [prior * law[word, said] for prior, word in zip(priors, words, strict=True)]
                for word, value in zip(words, joint, strict=True):
                    counts[word, said] += value / sum(joint)
                    totals[word] += value / sum(joint)
        law = defaultdict(float, {key: count / totals[key[0]] for key, count in counts.items()})
    return law


@pytest.mark.parametrize("sharpness", [0.0, 4.0])
def test_the_table_is_that_of_a_slow_em(sharpness: float) -> None:
    sources, targets = _ids()
    aligner = Aligner(rounds=3, sharpness=sharpness)
    lexicon, links = aligner.one_way(sources, targets)
    slow = _slow(aligner, sources, targets)
    for (source, target), value in slow.items():
        found = lexicon.of(lexicon.words - 1 if source is None else source, target)
        assert found == pytest.approx(value, abs=1e-12)
    assert lexicon.of(0, 0) == 0.0
    for source, target, row in zip(sources, targets, links, strict=True):
        for j, said in enumerate(target.tolist()):
            prior = aligner.prior(len(target), len(source))[j]
            joint = [prior[i] * slow[word, said] for i, word in enumerate([*source.tolist(), None])]
            assert joint[row[j]] == pytest.approx(max(joint), rel=1e-9)  # -1 is the empty word, the last one


def test_the_words_of_a_pair_find_each_other() -> None:
    links = Aligner(rounds=10).align(*_ids())
    assert links[0] == [(0, 0), (1, 1), (2, 2)]
    assert {(1, 1), (2, 2)} <= set(links[4])


def test_the_best_translations_are_sorted_and_fill_up() -> None:
    sources, targets = _ids()
    lexicon, _ = Aligner().one_way(sources, targets)
    ids, law = lexicon.best(40)
    assert ids.shape == law.shape == (lexicon.words, 40)
    assert (np.diff(law) <= 0).all()
    for word in range(lexicon.words):
        known = ids[word][ids[word] >= 0]
        assert law[word][: len(known)].tolist() == [lexicon.of(word, int(said)) for said in known]
        assert len(known) == 0 or law[word].sum() == pytest.approx(1)
    assert (lexicon.best(2)[0] == ids[:, :2]).all()


def test_links_grow_beside_those_that_both_give() -> None:
    forward, backward = {(0, 0), (1, 1), (2, 1), (4, 4)}, {(0, 0), (1, 1), (1, 2), (0, 1), (4, 3)}
    assert symmetrised(forward, backward, "intersection") == [(0, 0), (1, 1)]
    assert symmetrised(forward, backward, "union") == sorted(forward | backward)
    # (2, 1) and (1, 2) are beside (1, 1) and bring in a new word; (0, 1) brings none; (4, 4) is beside nothing.
    assert symmetrised(forward, backward) == [(0, 0), (1, 1), (1, 2), (2, 1)]


def test_empty_texts_have_no_links_and_others_keep_theirs() -> None:
    none = np.empty(0, np.int64)
    word = np.array([0]), np.array([1])
    assert Aligner().align([none, word[0], none], [none, word[1], word[1]]) == [[], [(0, 0)], []]
    assert Aligner().align([], []) == []


def test_links_of_a_batch_are_those_of_its_rows() -> None:
    sources, targets = _ids()
    aligner = Aligner(empty=0.0)
    lexicon, rows = aligner.one_way(sources, targets)
    pad = [torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in side], batch_first=True) for side in _ids()]
    lengths = [torch.tensor([len(row) for row in side]) for side in (sources, targets)]
    is_real = torch.arange(pad[0].shape[1]) < lengths[0][:, None]
    found = lexicon.links(pad[0], is_real, pad[1], lengths[1], aligner)
    assert [row[: len(own)].tolist() for row, own in zip(found, rows, strict=True)] == rows
    # Words that never met go by their places; padding points at a real place.
    unseen = lexicon.links(pad[0][:1], is_real[:1], torch.tensor([[0, 0, 0, 0]]), torch.tensor([3]), aligner)
    assert unseen.tolist() == [[0, 1, 2, 0]]


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"sharpness": -1.0}, {"empty": 2.0}, {"how": "grow"}])
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Aligner(**wrong)


def test_sides_of_unequal_count_are_refused() -> None:
    with pytest.raises(ConfigError, match="1 sources and 0 targets"):
        Aligner().align([np.array([1])], [])


def test_words_keep_their_spaces() -> None:
    text = "A man's dog, asleep."
    words = split_words(text)
    assert words == ["A", " man", "'", "s", " dog", ",", " asleep", "."]
    assert "".join(words) == text
