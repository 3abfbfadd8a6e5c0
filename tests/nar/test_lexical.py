"""The lexical prior: its divergence by hand, which places it counts, how its weight falls; and words by frequency."""

import gzip
from collections import Counter
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch

from outpace.errors import ConfigError
from outpace.models.nar.ctc import Ctc, CtcConfig
from outpace.train.nar.alignment import Aligner
from outpace.train.nar.frequency import by_frequency, main, recall_interval, tallies, word_counts
from outpace.train.nar.lexical import LexicalPrior
from outpace.train.nar.network import TrainedNar
from outpace.train.pairs import PairBatches, make_batch
from outpace.train.translation.written import read_written

V = 12
SOURCES = [[3, 4, 0], [3, 5, 0], [6, 4, 0], [3, 4, 0]]
TARGETS = [[7, 8, 0], [7, 9, 0], [10, 8, 0], [7, 11, 0]]  # 4 is 8 mostly, and 11 at times


def _raw() -> PairBatches:
    sides = (tuple(np.array(row) for row in side) for side in (SOURCES, TARGETS))
    return PairBatches(*sides, budget=64, seed=0)


def _network() -> TrainedNar:
    torch.manual_seed(0)
    config = CtcConfig(vocab_size=V, width=16, heads=2, ffn=16, encoder_layers=1, decoder_layers=1, dropout=0.0)
    return TrainedNar(Ctc(config))


def test_the_divergence_is_that_of_the_source_words_law() -> None:
    objective = LexicalPrior(heat=1.0).prepared(_raw())
    network = _network().double()
    batch = make_batch([np.array([3, 4, 0])], [np.array([7, 8, 0])])
    run = network.begin(batch)
    laws = network.net.finish(run)[0].detach()
    places = laws.shape[1]
    # Two places say words, one says nothing (the blank), one says a word that the table does not know.
    wanted = torch.full((1, places), V)
    wanted[0, 1], wanted[0, places // 2], wanted[0, -1] = 7, 8, 2
    lexicon, _ = Aligner().one_way(_raw().sources, _raw().targets)
    expected = []
    for place, source in ((1, 3), (places // 2, 4)):
        shares = {said: lexicon.of(source, said) for said in range(V)}
        total = sum(shares.values())
        expected.append(
            sum(p / total * (log(p / total) - float(laws[0, place, said])) for said, p in shares.items() if p > 0)
        )
    found = objective.divergence(laws, wanted, run, V)
    assert float(found) == pytest.approx(sum(expected) / 2, rel=1e-4)
    assert {said for said in range(V) if lexicon.of(4, said) > 0.05} >= {8, 11}
    assert float(objective.divergence(laws, torch.full_like(wanted, -1), run, V)) == 0.0


def test_rows_of_a_ragged_batch_are_as_they_are_alone() -> None:
    objective, network = LexicalPrior().prepared(_raw()), _network().double()
    rows = [np.array([3, 4, 5, 4, 0]), np.array([6, 0])]
    said = [np.array([7, 8, 9, 8, 0]), np.array([10, 0])]
    both, total, count = make_batch(rows, said), 0.0, 0
    run = network.begin(both)
    outputs = [part.detach() for part in network.net.finish(run)]
    wanted = network.net.aligned(outputs, run)
    for row, target in zip(rows, said, strict=True):
        own = network.begin(make_batch([row], [target]))
        laws = [part.detach() for part in network.net.finish(own)]
        alone = network.net.aligned(laws, own)
        known = int(((alone >= 0) & (alone < V)).sum())
        total, count = total + known * float(objective.divergence(laws[0], alone, own, V)), count + known
    assert float(objective.divergence(outputs[0], wanted, run, V)) == pytest.approx(total / count, rel=1e-6)


def test_the_weight_falls_to_nothing_midway() -> None:
    objective = LexicalPrior(weight=0.5).prepared(_raw())
    weights = [objective.weight_at(progress) for progress in (0.0, 0.1, 0.25, 0.49, 0.5, 0.9)]
    assert weights == sorted(weights, reverse=True)
    assert weights[2] == pytest.approx(0.5 * log(2))
    assert weights[-2:] == [0.0, 0.0]
    network, batch = _network(), make_batch([np.array([3, 4, 0])], [np.array([7, 8, 0])])
    early = float(objective(network, batch).detach())
    network.progress = 0.8
    assert early > float(objective(network, batch).detach())
    with pytest.raises(ConfigError, match="no table"):
        LexicalPrior()(network, batch)


def test_words_are_counted_in_bands_of_their_frequency() -> None:
    counts = word_counts(["a dog runs", "a dog sleeps", "a cat sleeps", "a cow"])
    assert counts["a"] == 4
    texts, references = ["a dog dog sleeps", "a cow"], ["a dog runs", "a a newt sleeps"]
    rare, some, common = by_frequency(texts, references, counts, bands=(0, 2, 4))
    assert (rare.wanted, rare.written, rare.found) == (2, 1, 0)  # runs, newt; cow
    assert (some.wanted, some.written, some.found) == (2, 3, 1)  # dog, sleeps; dog, dog, sleeps
    assert (common.wanted, common.written, common.found) == (3, 2, 2)
    assert (some.recall, some.precision, some.f1) == (1 / 2, 1 / 3, 2 / 5)


def test_the_interval_is_that_of_drawing_whole_sentences() -> None:
    generator = np.random.default_rng(5)
    words = [f"w{index}" for index in range(12)]
    counts = Counter({word: index for index, word in enumerate(words)})
    references = [" ".join(generator.choice(words, 6)) for _ in range(9)]
    ours, theirs = ([" ".join(generator.choice(words, 6)) for _ in references] for _ in range(2))
    bands = (0, 4, 8)
    found, base = (tallies(texts, references, counts, bands) for texts in (ours, theirs))
    # The slow way: each drawn set of sentences is counted anew, by the words themselves.
    draws = np.random.default_rng(3).multinomial(9, np.full(9, 1 / 9), size=50)
    apart = []
    for weights in draws:
        drawn = np.repeat(np.arange(9), weights)
        sets = [[texts[index] for index in drawn] for texts in (ours, theirs, references)]
        first, second = (by_frequency(texts, sets[2], counts, bands) for texts in sets[:2])
        apart.append([one.recall - other.recall for one, other in zip(first, second, strict=True)])
    low, high = np.quantile(apart, (0.025, 0.975), axis=0)
    np.testing.assert_allclose(recall_interval(found, base, draws=50, seed=3), np.stack([low, high], 1))
    assert recall_interval(found, found) == [(0.0, 0.0)] * 3


def test_what_a_teacher_lost_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tatoeba_pairs"
    folder.mkdir()
    lines = "a\tein Hund\nb\tein Hund bellt\nc\tein Dackel\n"
    (folder / "en-de.train.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    path = tmp_path / "written.jsonl"
    path.write_text('{"parent": "0"}\n["a", "ein Hund"]\n["b", "ein Hund"]\n["c", "ein Hund"]\n', encoding="utf-8")
    given = ["--written", str(path), "--set", "tatoeba-pairs:test:en-de", "--bands", "0", "2", "3", "--data"]
    assert main([*given, str(tmp_path)]) == 0
    rows = [line.split(" | ")[1:] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [["0", "2", "0 (0%) |"], ["2", "2", "3 (150%) |"], ["3", "3", "3 (100%) |"]]
    path.write_text("bellt\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no texts that a teacher wrote"):
        read_written(path)
