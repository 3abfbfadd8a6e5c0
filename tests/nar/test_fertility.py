"""Fertilities: places are copies by count, the likelihood is that of counts and tokens, a teacher chooses."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE

from outpace import LanguageModel
from outpace.errors import CapabilityError, ConfigError
from outpace.models.nar.ctc import Ctc, CtcConfig
from outpace.models.nar.fertility import Fertility, FertilityConfig, copies, counted, evenly
from outpace.models.nar.files import config_of, read_nar
from outpace.models.nar.model import NarModel
from outpace.models.nar.network import NarNet
from outpace.testing.spelling import plain_spellings, toy_tokenizer
from outpace.testing.toy import ToyEncoderDecoder
from outpace.train.nar.network import TrainedNar
from outpace.train.pairs import PairBatches

VOCAB, SOURCES = 13, [[5, 9, 3, 9, 0], [4, 0], [7, 7, 11, 2, 6, 8, 0]]


def tiny(seed: int = 0, **sizes: int) -> Fertility:
    torch.manual_seed(seed)
    config = FertilityConfig(vocab_size=VOCAB, width=8, heads=2, ffn=16, encoder_layers=1, decoder_layers=2, **sizes)
    net = Fertility(config).double().eval()
    with torch.no_grad():
        net.fertility.weight.mul_(4)
        net.embed_tokens.weight.mul_(3)
    return net.requires_grad_(False)


def opened(net: NarNet) -> LanguageModel:
    return LanguageModel(NarModel(net), toy_tokenizer(plain_spellings(VOCAB)), end_tokens=(0,))


def make_teacher(spellings: tuple[str, ...] = plain_spellings(VOCAB)) -> ToyEncoderDecoder:
    teacher = ToyEncoderDecoder(vocab_size=len(spellings))
    teacher.tokenizer = toy_tokenizer(spellings)
    return teacher


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    found = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return found, torch.arange(found.shape[1]) < lengths[:, None]


def test_states_are_copied_as_often_as_they_count() -> None:
    states = torch.arange(8.0).view(2, 4, 1)
    is_real = torch.tensor([[True] * 4, [True, True, False, False]])
    inputs, is_place = copies(states, torch.tensor([[2, 0, 1, 3], [0, 0, 9, 9]]), is_real, 5)
    assert inputs[0, :, 0].tolist() == [0, 0, 2, 3, 3]  # the sixth place is more than there may be
    assert is_place.tolist() == [[True] * 5, [True, False, False, False, False]]
    assert inputs[1, 0, 0] == 4


@pytest.mark.parametrize("most", [1, 2, 4])
def test_counts_are_those_of_the_links_and_keep_their_sum_where_there_is_room(most: int) -> None:
    is_real = torch.tensor([[True, True, True, False]])
    for links in itertools.product(range(3), repeat=3):
        found = counted(torch.tensor([[*links, 3]]), is_real, torch.tensor([3]), most)[0].tolist()
        plain = [links.count(at) for at in range(4)]
        assert sum(found) == 3 and max(found) <= most
        if max(plain) <= most:
            assert found == plain


def test_the_likelihood_is_that_of_fertilities_and_tokens() -> None:
    net = tiny(most_fertility=2)
    sources, is_real = padded([[5, 9, 0], [4, 0]])
    targets, lengths = torch.tensor([[6, 7, 1, 8], [3, 0, 0, 0]]), torch.tensor([4, 1])
    links = torch.tensor([[0, 2, 2, 1], [1, 0, 0, 0]])
    run = net.begin(sources, is_real, targets, lengths, {"links": links})
    outputs = net.finish(run)
    found = net.nll(outputs, run)
    fertilities = [[1, 1, 2], [0, 1]]
    for row, size in enumerate((4, 1)):
        wanted = -sum(float(outputs[1][row, at, count]) for at, count in enumerate(fertilities[row]))
        wanted -= sum(float(outputs[0][row, at, targets[row, at]]) for at in range(size))
        assert abs(float(found[row]) - wanted) < 1e-10
    assert net.aligned(outputs, run).tolist() == [[6, 7, 1, 8], [3, -1, -1, -1]]


def test_the_laws_of_all_texts_and_fertilities_sum_to_one() -> None:
    net = tiny(most_fertility=1)
    net.config = FertilityConfig(vocab_size=VOCAB, most_fertility=1)
    source, is_real = padded([[5, 0]])
    total = 0.0
    for counts in itertools.product((0, 1), repeat=2):
        links = [at for at, count in enumerate(counts) for _ in range(count)]
        for text in itertools.product(range(VOCAB), repeat=len(links)) if links else []:
            extra = {"links": torch.tensor([links])}
            run = net.begin(source, is_real, torch.tensor([text]), torch.tensor([len(text)]), extra)
            total += float((-net.nll(net.finish(run), run)).exp())
    law = net.law(net.begin(source, is_real))[0]
    assert abs(total + float(law[:, 0].sum().exp()) - 1) < 1e-10  # no token at all is what is left


def test_a_target_without_room_is_unlikely_and_not_aligned() -> None:
    net = tiny(most_fertility=1)
    source, is_real = padded([[5, 0]])
    run = net.begin(source, is_real, torch.tensor([[1, 2, 3]]), torch.tensor([3]))
    outputs = net.finish(run)
    assert float(net.nll(outputs, run)) > 1e20 and set(net.aligned(outputs, run).flatten().tolist()) == {-1}


def test_training_learns_fertilities_from_the_pairs() -> None:
    """Even words become two tokens, odd ones one, wherever they stand."""
    said = {word: [word, word + 6] if word % 2 == 0 else [word] for word in range(1, 7)}
    sources = list(itertools.permutations(range(1, 7), 3))
    ids = tuple(np.array([*source, 0]) for source in sources)
    targets = tuple(np.array([*(token for word in source for token in said[word]), 0]) for source in sources)
    batches = PairBatches(ids, targets, 30, 0)
    network = TrainedNar(tiny())
    network.prepare(batches, Tokenizer(BPE()))
    run = network.begin(batches.batch(0))
    wanted = [[len(said.get(token, [])) for token in source] for source in run.sources.tolist()]
    assert run.extra["fertilities"].tolist() == wanted


def test_rows_alone_equal_rows_in_a_batch_whatever_the_rule() -> None:
    lm = opened(tiny())
    teacher = make_teacher()
    for method in ({"method": "one-pass"}, {"method": "noisy-parallel", "models": {"teacher": teacher}}):
        together = [result.tokens for result in lm.generate(SOURCES, max_tokens=30, **method)]
        alone = [lm.generate(source, max_tokens=30, **method).tokens for source in SOURCES]
        assert together == alone and len({len(tokens) for tokens in alone}) > 1


def test_the_teacher_chooses_the_best_of_the_candidates() -> None:
    net, teacher = tiny(), make_teacher()
    lm = opened(net)

    def score(source: list[int], text: list[int]) -> float:
        cache = teacher.new_cache(1, 64)
        teacher.encode([source], cache)
        ids = torch.tensor([[0, *text[:-1]]])
        laws = teacher.score(ids, torch.arange(len(text))[None], None, cache).logits[0].double().log_softmax(-1)
        return float(laws[range(len(text)), text].sum()) / len(text)

    options = {"method": "noisy-parallel", "models": {"teacher": teacher}}
    best = []
    for samples in (1, 4, 16):
        found = lm.generate(SOURCES, max_tokens=60, options={"samples": samples}, **options)
        best.append([score(source, result.tokens) for source, result in zip(SOURCES, found, strict=True)])
    assert [r.tokens for r in lm.generate(SOURCES, max_tokens=60, method="one-pass")] == [
        r.tokens for r in lm.generate(SOURCES, max_tokens=60, options={"samples": 1}, **options)
    ]
    assert all(a <= b + 1e-12 <= c + 2e-12 for a, b, c in zip(*best, strict=True)) and best[0] != best[2]


def test_other_kinds_and_models_without_a_teacher_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = opened(Ctc(CtcConfig(vocab_size=VOCAB, width=8, heads=2, ffn=8)))
    with pytest.raises(CapabilityError, match="fertility"):
        other.generate([5, 0], method="noisy-parallel", models={"teacher": make_teacher()})
    with pytest.raises(ConfigError, match="No teacher"):
        opened(tiny()).generate([5, 0], method="noisy-parallel")
    lm = opened(tiny())
    with pytest.raises(ConfigError, match="empty"):
        lm.generate([[]], method="noisy-parallel", models={"teacher": make_teacher()})


def test_files_keep_a_network(tmp_path: Path) -> None:
    import json

    from safetensors.torch import save_file

    net = tiny().float()
    (tmp_path / "config.json").write_text(json.dumps(config_of(net)), encoding="utf-8")
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    found = NarModel(read_nar(tmp_path)).write(SOURCES)
    assert all(torch.equal(a, b) for a, b in zip(found, NarModel(net).write(SOURCES), strict=True))


def test_even_links_spread_a_target_over_its_source() -> None:
    found = evenly(torch.tensor([[True, True], [True, False]]), torch.tensor([4, 3]), 4)
    assert found.tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
