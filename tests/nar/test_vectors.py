"""Next-vector models: temperatures against enumeration, the energy score against loops, steps against whole passes."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.methods.whole.next_vector import NextVector
from outpace.models.continuous.vectors import Vectors, VectorsConfig, energy_score
from outpace.models.nar.model import NarModel
from outpace.models.nar.network import Pass
from outpace.run.row import Row
from outpace.sampling import row_key
from outpace.sampling.likelihood_free import sharpened
from outpace.testing.gtest import g_test
from outpace.testing.world import drive, make_run

SIZES: dict[str, Any] = {"width": 16, "heads": 2, "ffn": 16, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}
SOURCES = [[5, 6, 7, 8, 9, 10, 11, 0], [9, 0], [4, 4, 12, 13, 0]]
LAW = (0.5, 0.3, 0.15, 0.05)


def network(**settings: Any) -> Vectors:
    torch.manual_seed(1)
    sizes = SIZES | {"length": 12, "chunk": 3, "dims": 8, "max_source": 16, "max_positions": 16, "end_token": 0}
    return Vectors(VectorsConfig(vocab_size=17, **(sizes | settings))).double().eval()


def laid(net: Vectors, sources: Sequence[list[int]], targets: Tensor | None = None) -> Pass:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(source) for source in sources], batch_first=True)
    is_real = torch.arange(ids.shape[1]) < torch.tensor([[len(source)] for source in sources])
    lengths = None if targets is None else torch.full((len(sources),), targets.shape[1])
    return net.begin(ids, is_real, targets, lengths)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_agreeing_draws_have_the_law_of_a_whole_power(power: int) -> None:
    found = torch.zeros(3, dtype=torch.float64)
    probs = (0.6, 0.3, 0.1)
    for draws in itertools.product(range(3), repeat=6):
        at, is_exact = sharpened(draws, [0.5] * 6, 1 / power)
        found[draws[at]] += is_exact * math.prod(probs[value] for value in draws)
    wanted = torch.tensor(probs, dtype=torch.float64) ** power
    torch.testing.assert_close(found / found.sum(), wanted / wanted.sum(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.8, 0.55, 0.4])
def test_any_temperature_matches_the_enumerated_law(temperature: float) -> None:
    generator = torch.Generator().manual_seed(3)
    probs = torch.tensor(LAW, dtype=torch.float64)
    draws = torch.multinomial(probs, 8000 * 200, True, generator=generator).view(8000, 200).tolist()
    chances = torch.rand(8000, 200, generator=generator, dtype=torch.float64).tolist()
    counts = torch.zeros(4)
    for row, chance in zip(draws, chances, strict=True):
        at, is_exact = sharpened(row, chance, temperature)
        assert is_exact
        counts[row[at]] += 1
    law = probs ** (1 / temperature)
    assert g_test(counts, law / law.sum()) > 1e-3
    assert g_test(counts, probs) < 1e-9  # the test can tell


def test_groups_stand_in_where_draws_run_out() -> None:
    # Two pairs of 1 and one of 2 among five draws at T = 1/4: the largest group is three of the value 1.
    assert sharpened([1, 2, 1, 2, 1], [0.9] * 5, 0.25) == (0, False)
    taken = Counter(sharpened([1, 2, 1, 2], [(at + 0.5) / 100] * 4, 0.25)[0] for at in range(100))
    assert taken == {0: 50, 1: 50}


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1.5])
def test_other_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="only drawn from"):
        sharpened([1, 1], [0.5, 0.5], temperature)
    with pytest.raises(ConfigError, match="temperature"):
        NextVector(temperature=temperature)


def test_the_energy_score_is_the_textbooks() -> None:
    torch.manual_seed(0)
    ours = torch.randn(4, 2, 5, dtype=torch.float64, requires_grad=True)
    theirs = torch.randn(3, 2, 5, dtype=torch.float64)
    for row in range(2):
        apart = [float((a - b).norm()) for a in ours[:, row].detach() for b in theirs[:, row]]
        among = [float((a - b).norm()) for a, b in itertools.permutations(ours[:, row].detach(), 2)]
        wanted = 2 * sum(apart) / 12 - sum(among) / 12
        assert float(energy_score(ours, theirs)[row].detach()) == pytest.approx(wanted, abs=1e-12)
    same = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    energy_score(same, theirs[:, 0]).backward()
    assert same.grad is not None and bool(same.grad.isfinite().all())


def test_the_score_is_least_for_the_true_law() -> None:
    torch.manual_seed(0)
    truth = torch.randn(400, 1, 2, dtype=torch.float64)
    scores = [
        float(energy_score(spread * torch.randn(400, 1, 2, dtype=torch.float64), truth)) for spread in (0.4, 1, 2)
    ]
    assert scores[1] < min(scores[0], scores[2])


def test_a_chunk_is_compressed_by_itself() -> None:
    net, tokens = network(), torch.randint(0, 17, (2, 12), generator=torch.Generator().manual_seed(0))
    whole = net.compressor.encode(tokens).mean
    for at in range(4):
        alone = net.compressor.encode(tokens[:, 3 * at : 3 * at + 3]).mean
        torch.testing.assert_close(alone[:, 0], whole[:, at])


def test_states_are_those_of_prefixes() -> None:
    net, tokens = network(), torch.randint(0, 17, (3, 9), generator=torch.Generator().manual_seed(0))
    run = laid(net, SOURCES)
    whole = net.states(run, tokens)
    for at in range(4):
        torch.testing.assert_close(net.states(run, tokens[:, : 3 * at])[:, -1], whole[:, at])


def written(net: Vectors, method: NextVector, seed: int = 1) -> tuple[list[list[int]], int]:
    rows = [Row([2], 1, row_key(seed, at), 40, (16,), source=source) for at, source in enumerate(SOURCES)]
    run = make_run(method, target=NarModel(net))
    return [row.written for row in drive(run, rows) and rows], run.counters["target"].nfe


def test_calls_are_a_chunk_each_and_a_row_is_as_it_is_alone() -> None:
    net = network(end_token=16)
    net.compressor.embed_tokens.weight.data[16] = 0
    for method in (NextVector(), NextVector(temperature=0.5, most=20)):
        texts, calls = written(net, method)
        counted = Row([2], 1, row_key(1, 0), 40, (16,), source=SOURCES[0])
        alone = make_run(method, target=NarModel(net))
        drive(alone, [counted])
        assert counted.written[:12] == texts[0][:12]
        loop = calls - 4  # one call for each of four vectors; the rest are the loop's looks at laws
        assert 1 <= loop <= 2 and all(len(text) >= 12 for text in texts)
    assert written(net, NextVector(), seed=2)[0] != written(net, NextVector())[0]


def test_the_method_draws_tokens_at_the_temperature() -> None:
    # A network whose vectors are known: the first number of the noise picks one of four, by the law.
    net = network(length=3, noise=1)
    codes = torch.eye(4, 8, dtype=torch.float64)
    edges = torch.tensor(LAW, dtype=torch.float64).cumsum(0)

    def draw(hidden: Tensor, noise: Tensor) -> Tensor:
        del hidden
        return codes[torch.searchsorted(edges, noise[..., 0] + 0.5).clamp(max=3)]

    def decode(vectors: Tensor) -> Tensor:
        tokens = 1 + vectors[..., :4].argmax(-1).repeat_interleave(3, -1)
        return 50.0 * torch.nn.functional.one_hot(tokens, 17).double()

    net.draw.forward, net.compressor.decode = draw, decode  # type: ignore[method-assign]
    rows = [Row([2], 1, row_key(5, at), 3, (0,), source=[9, 0]) for at in range(3000)]
    drive(make_run(NextVector(temperature=0.6, most=80), target=NarModel(net)), rows)
    assert all(len(set(row.written)) == 1 for row in rows)
    counts = torch.bincount(torch.tensor([row.written[0] - 1 for row in rows]), minlength=4)
    law = torch.tensor(LAW, dtype=torch.float64) ** (1 / 0.6)
    assert g_test(counts, law / law.sum()) > 1e-3


def test_each_stage_teaches_its_own_part() -> None:
    targets = torch.randint(1, 17, (3, 11), generator=torch.Generator().manual_seed(0))
    for stage in ("chunks", "vectors"):
        net = network(stage=stage).train()
        net.loss(laid(net, SOURCES, targets)).sum().backward()
        touched = {name for name, weight in net.named_parameters() if weight.grad is not None}
        assert touched and all(name.startswith("compressor.") == (stage == "chunks") for name in touched)


@pytest.mark.parametrize("settings", [{"chunk": 5}, {"draws": 1}, {"noise": 0}, {"mixing": 1}, {"dims": 0}])
def test_contradictions_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        network(**settings)


def test_a_text_too_long_is_refused() -> None:
    with pytest.raises(ConfigError, match="do not fit into 12 places"):
        network().loss(laid(network(), [[1, 0]], torch.ones(1, 12, dtype=torch.int64)))
