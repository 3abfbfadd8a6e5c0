"""The recursive auto-encoder: one module at all lengths, all of a text through one vector, rows that do not meet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from outpace import LanguageModel
from outpace.errors import ConfigError
from outpace.models.nar.model import NarModel
from outpace.models.nar.recursive import Recursive, RecursiveConfig
from outpace.train.byte_accuracy import byte_accuracy
from outpace.train.nar.network import TrainedNar
from outpace.train.nar.objectives import Likelihood
from outpace.train.pairs import STRINGS, make_batch, train_pair_tokenizer

VOCAB = 13
SOURCES = [[5, 9, 3, 9, 4, 6, 7, 2, 0], [4, 0], [7, 7, 11, 0], [1, 2, 3, 4, 0]]


def tiny(**sizes: int) -> Recursive:
    torch.manual_seed(0)
    return Recursive(RecursiveConfig(vocab_size=VOCAB, width=8, pairs=1, **sizes)).double().eval()


def test_places_are_the_next_power_of_two() -> None:
    run = NarModel(tiny()).begin(SOURCES)
    assert run.is_place.sum(1).tolist() == [16, 4, 4, 8]
    assert run.states.shape == (4, 4, 8)


def test_all_that_is_read_of_a_source_is_its_vector() -> None:
    net = tiny().requires_grad_(False)
    run, other = NarModel(net).begin(SOURCES[:1]), NarModel(net).begin([[1] * 9])
    wanted = net.finish(run)[0]
    other.states = run.states
    assert torch.equal(net.finish(other)[0], wanted)


def test_a_group_is_a_convolution_with_a_residual() -> None:
    net = tiny().requires_grad_(False)
    group, state = net.halves, torch.randn(2, 8, 8).double()
    hidden = group.norms[0](state).transpose(1, 2)
    for linear, act in ((group.first[0], torch.relu), (group.second[0], lambda x: x)):
        kernel = linear.weight.view(8, 3, 8).transpose(1, 2)
        hidden = act(torch.nn.functional.conv1d(hidden, kernel, linear.bias, padding=1))
    assert torch.allclose(group(state), state + hidden.transpose(1, 2), atol=1e-12)


def test_the_groups_are_shared_by_all_levels() -> None:
    sizes = [sum(weight.numel() for weight in tiny(max_source=longest).parameters()) for longest in (8, 256)]
    assert sizes[0] == sizes[1]
    net = tiny()
    texts = NarModel(net).write([[1, 2, 3, 0] * 40])
    assert texts[0].shape[1] == VOCAB  # a length that no one has asked for before


def test_rows_alone_equal_rows_in_a_batch() -> None:
    lm = LanguageModel(NarModel(tiny()), end_tokens=(0,))
    together = [result.tokens for result in lm.generate(SOURCES, max_tokens=30)]
    assert together == [lm.generate(source, max_tokens=30).tokens for source in SOURCES]
    net = tiny().requires_grad_(False)
    laws = net.finish(NarModel(net).begin(SOURCES))[0]
    for row, source in enumerate(SOURCES):
        alone = net.finish(NarModel(net).begin([source]))[0][0]
        assert torch.allclose(laws[row, : len(alone)], alone, atol=1e-12)


def test_the_likelihood_is_that_of_the_text_and_its_ends() -> None:
    net = tiny().requires_grad_(False)
    sources, is_real = torch.tensor([[4, 5, 0, 0], [4, 0, 0, 0]]), torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    run = net.begin(sources, is_real, torch.tensor([[4, 5, 0, 0], [6, 7, 8, 9]]), torch.tensor([2, 4]))
    outputs = net.finish(run)
    found = net.nll(outputs, run)
    assert abs(float(found[0]) + float(outputs[0][0, range(4), [4, 5, 0, 0]].sum())) < 1e-12
    assert float(found[1]) > 1e20  # four tokens leave no place for an end
    assert net.aligned(outputs, run).tolist() == [[4, 5, 0, 0], [-1] * 4]


def test_it_learns_to_give_strings_back() -> None:
    torch.manual_seed(1)
    network = TrainedNar(Recursive(RecursiveConfig(vocab_size=VOCAB, width=16, pairs=1)))
    rows = [torch.tensor([*row, 0]).numpy() for row in torch.randint(1, VOCAB, (24, 6)).tolist()]
    batch = make_batch(rows, rows)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(80):
        optimiser.zero_grad()
        Likelihood()(network, batch).backward()
        optimiser.step()
    texts = NarModel(network.net).write([row.tolist() for row in rows])
    assert [text.argmax(-1).tolist() for text in texts] == [row.tolist() for row in rows]


def test_sources_that_cannot_be_read_are_refused() -> None:
    lm = LanguageModel(NarModel(tiny(max_source=8)), end_tokens=(0,))
    with pytest.raises(ConfigError, match="at most 8"):
        lm.generate([1] * 9)
    with pytest.raises(ConfigError, match="empty"):
        lm.generate([[]])


def test_a_vocabulary_of_259_is_all_bytes() -> None:
    tokenizer = train_pair_tokenizer([("abab abab", "abab")] * 9, 259)
    assert tokenizer.get_vocab_size() == 259
    assert len(tokenizer.encode("Größe 語").ids) == len("Größe 語".encode()) + 1


def test_strings_are_short_and_their_own_targets(tmp_path: Path) -> None:
    folder = tmp_path / "tatoeba_pairs"
    folder.mkdir()
    lines = ["Go on.\tWeiter.", "Go on.\tMach weiter.", f"{'x' * 32}\ty", f"{'x' * 31}\ty"]
    import gzip

    (folder / "en-de.test.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    assert STRINGS.pairs(tmp_path, "test") == [("Go on.", "Go on."), ("x" * 31, "x" * 31)]


def test_bytes_count_at_their_places() -> None:
    assert byte_accuracy(["abc", "ü", "ab", "xab"], ["abd", "ü", "abcd", "abx"]) == (2 + 2 + 2 + 0) / (3 + 2 + 4 + 3)
