"""Expectation maximisation beside the sum over all paths of hidden states, in float64."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

import outpace
from outpace.errors import ConfigError, StorageError
from outpace.laws.markov import Markov, read_factors, save_factors
from outpace.train import attribute, hmm
from outpace.train.attribute import fit
from outpace.train.hmm import Counts, expect, hard_counts, refine

STATES, VOCAB = 3, 4


def toy(seed: int) -> Markov:
    rng = np.random.default_rng(seed)
    first, move, emit = rng.random(STATES), rng.random((STATES, STATES)), rng.random((VOCAB, STATES))
    return Markov(first / first.sum(), move / move.sum(1, keepdims=True), emit / emit.sum(0))


def counted(model: Markov, texts: list[list[int]]) -> Counts:
    """Expected counts by enumeration."""
    found = Counts.none(STATES, VOCAB)
    for text in texts:
        paths = {}
        for path in itertools.product(range(STATES), repeat=len(text)):
            chance = model.first[path[0]]
            for left, right in itertools.pairwise(path):
                chance *= model.move[left, right]
            for state, token in zip(path, text, strict=True):
                chance *= model.emit[token, state]
            paths[path] = float(chance)
        total = sum(paths.values())
        found.log_likelihood += np.log(total)
        for path, chance in paths.items():
            found.first[path[0]] += chance / total
            for left, right in itertools.pairwise(path):
                found.move[left, right] += chance / total
            for state, token in zip(path, text, strict=True):
                found.emit[token, state] += chance / total
    return found


def test_expected_counts_are_those_of_all_paths() -> None:
    model, texts = toy(0), [[0, 1, 2, 3, 1], [2, 2], [3]]
    ours, theirs = expect(model, texts), counted(model, texts)
    for name in ("first", "move", "emit"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-12, atol=1e-12)
    assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, rel=1e-12)


def test_counts_of_given_states() -> None:
    found = hard_counts([[0, 1, 1], [2]], [[1, 0, 2], [1]], STATES, VOCAB)
    assert found.first.tolist() == [0, 2, 0]
    assert found.move.nonzero().tolist() == [[0, 2], [1, 0]]
    assert found.emit.nonzero().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]


def test_every_round_makes_the_texts_likelier() -> None:
    texts = [[(start + at // 2) % VOCAB for at in range(9)] for start in range(VOCAB)]
    model, nats = toy(2), list[float]()
    for _ in range(20):
        model, own = refine(model, texts, pseudo=1e-9, floor=0.0)
        nats.append(own)
    assert all(after < before + 1e-6 for before, after in itertools.pairwise(nats))  # tables are float32
    assert nats[-1] < nats[0] - 0.05


def test_files_hold_what_was_saved(tmp_path: Path) -> None:
    model = toy(3)
    model.save(tmp_path / "hmm")
    read = Markov.read(tmp_path / "hmm", np.float64)
    for name in ("first", "move", "emit"):
        np.testing.assert_allclose(getattr(read, name), getattr(model, name), rtol=1e-2)
    np.testing.assert_allclose(read.emit.sum(0), 1)
    save_factors(tmp_path / "attribute", np.array([-0.5, 0.25]), "sad")
    np.testing.assert_allclose(read_factors(tmp_path / "attribute"), [-0.5, 0.0])


def test_an_attribute_is_a_product_over_tokens() -> None:
    rng = np.random.default_rng(4)
    texts = [rng.integers(0, 6, 8).tolist() for _ in range(200)]
    labels = [5 not in text for text in texts]
    factors = fit(texts, labels, 6)
    assert (factors <= 0).all()
    assert factors[5] < -1 and (factors[:5] > -0.05).all()
    chances = [np.exp(factors[text].sum()) for text in texts]
    assert [chance > 0.5 for chance in chances] == labels


def test_both_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "hmm"
    small = ["--states", "4", "--texts", "40", "--length", "24", "--rounds", "2"]
    assert hmm.main(["--out", str(out), *small]) == 0
    assert Markov.read(out).num_states == 4
    assert (
        attribute.main(["--texts", str(out / "texts.npz"), "--without", "girl", "--out", str(tmp_path / "none")]) == 0
    )
    law = f"hmm:attribute={tmp_path / 'none'},model={out}"
    assert outpace.load("stories").generate("Once", law=law, max_tokens=4).tokens
    with pytest.raises(ConfigError, match="All texts are alike"):
        attribute.main(["--texts", str(out / "texts.npz"), "--without", "\t\t", "--out", str(tmp_path)])
    with pytest.raises(StorageError, match="holds no texts"):
        attribute.main(["--texts", str(out / "config.json"), "--without", "e", "--out", str(tmp_path)])
    assert "nats per token" in capsys.readouterr().out
