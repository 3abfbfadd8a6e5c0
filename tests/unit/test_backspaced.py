"""Tokens that are taken back: the loss text by text, its reduction, and the cache against fresh readings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from outpace import LanguageModel
from outpace.api.backspaced import Backspacer, backspaced
from outpace.bench.backspaces import main
from outpace.bench.likeness import area, clustered, likeness
from outpace.errors import CapabilityError, ConfigError
from outpace.sampling import Sampler, Sampling, row_key
from outpace.testing.toy import ToyModel
from outpace.train.network import Llama, LlamaShape
from outpace.train.objectives import causal_loss
from outpace.train.objectives_backspace import BACKSPACE_ID, BacktrackedBatch, backtracked, match_loss

SHAPE = LlamaShape(hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=48, vocab=12, context=64)


@pytest.fixture(scope="module")
def network() -> Llama:
    made = Llama(SHAPE, seed=1)
    for weight in made.parameters():
        weight.data *= 8 if weight.ndim == 2 else 1
    return made.double()


@pytest.fixture(scope="module")
def batch(network: Llama) -> BacktrackedBatch:
    tokens = torch.randint(2, 12, (3, 14), generator=torch.Generator().manual_seed(0))
    return backtracked(network, tokens, 5, 7, 0)


def test_draws_stand_behind_their_places(network: Llama, batch: BacktrackedBatch) -> None:
    size = 13
    assert batch.inputs.shape == (3, size + 5) and not bool((batch.inputs[:, size:] == BACKSPACE_ID).any())
    assert bool((batch.labels[:, size:] == BACKSPACE_ID).all()) and bool(batch.is_error.any())
    said = network.project(network.hidden(batch.inputs, pieces=batch.pieces, positions=batch.positions))
    for row in range(3):
        text = batch.inputs[row, :size].tolist()
        for at, place in enumerate(batch.places.tolist()):
            drawn = int(batch.inputs[row, size + at])
            alone = network(torch.tensor([[*text[: place + 1], drawn]]))[0, -1]
            assert (said[row, size + at] - alone).abs().max() < 1e-9
            assert bool(batch.is_error[row, at]) == (drawn != int(batch.labels[row, place]))


def test_the_loss_is_the_sum_over_transitions_told_one_by_one(network: Llama, batch: BacktrackedBatch) -> None:
    gamma, strength, share, size = 0.9, 0.2, 0.4, 13

    def values(text: list[int]) -> torch.Tensor:
        return network(torch.tensor([text]))[0, -1]

    of_data, flow, own = [], [], []
    for row in range(3):
        text = [*batch.inputs[row, :size].tolist(), int(batch.labels[row, size - 1])]
        steps = [(text[: at + 1], text[at + 1], text[: at + 2]) for at in range(size - 1)]
        for at, place in enumerate(batch.places.tolist()):
            wrong = [*text[: place + 1], int(batch.inputs[row, size + at])]
            if bool(batch.is_error[row, at]):
                steps.append((wrong, BACKSPACE_ID, wrong[:-1]))
            for state, after in ((wrong[:-1], wrong), (wrong, wrong[:-1])):  # there and back
                own.append(values(state).logsumexp(-1) - gamma * values(after).logsumexp(-1))
        for state, action, after in steps:
            reward = values(state)[action] - gamma * values(after).logsumexp(-1)
            of_data.append(reward - strength * reward**2)
            flow.append(values(state).logsumexp(-1) - gamma * values(after).logsumexp(-1))
    mean = [torch.stack(part).mean() for part in (of_data, flow, own)]
    want = -mean[0] + (1 - share) * mean[1] + share * mean[2]
    found = match_loss(network, *batch, gamma=gamma, strength=strength, share=share)
    assert float((found - want).detach().abs()) < 1e-6


def test_without_strength_and_own_states_it_is_the_cross_entropy(network: Llama, batch: BacktrackedBatch) -> None:
    plain = batch._replace(is_error=torch.zeros_like(batch.is_error))  # no errors: the texts alone
    for gamma in (0.0, 0.7, 1.0):
        found = match_loss(network, *plain, gamma=gamma, strength=0.0, share=0.0)
        want = causal_loss(network, batch.inputs[:, :13])
        assert float((found - want).detach().abs()) < 1e-5
    both = match_loss(network, *batch, gamma=0.7, strength=0.0, share=0.0)  # and with them, that of backspaces too
    logits = network.project(network.hidden(batch.inputs, pieces=batch.pieces, positions=batch.positions)).float()
    is_asked = torch.cat([torch.ones(3, 12), torch.zeros(3, 1), batch.is_error], 1).bool()
    assert float((both - F.cross_entropy(logits[is_asked], batch.labels[is_asked])).detach().abs()) < 1e-5


def test_training_begins_by_likelihood(network: Llama, batch: BacktrackedBatch) -> None:
    tokens = torch.cat([batch.inputs[:, :13], batch.labels[:, 12:13]], 1)
    begun = backtracked(network, tokens, 5, 7, 0, progress=0.0)
    plain = match_loss(network, *batch, strength=0.0, share=0.0)
    assert float((match_loss(network, *begun) - plain).detach().abs()) < 1e-6
    assert float(backtracked(network, tokens, 5, 7, 0, progress=0.25).ramp) == 0.5
    assert float((match_loss(network, *batch) - plain).detach().abs()) > 1e-3


def writer(backspaces: int, seed: int = 0) -> Backspacer:
    target = ToyModel(vocab_size=9, sharpness=1.0)
    return Backspacer(target, 4, [1, 2, 3], Sampler(Sampling(temperature=1.0), [row_key(seed, 0)]), 80, backspaces)


def test_the_cache_behind_a_backspace_is_that_of_a_fresh_reading() -> None:
    one, lengths = writer(1000), set[int]()
    for _ in range(60):
        law = one.law()
        fresh = writer(1000)
        fresh.text = list(one.text)
        assert torch.equal(law, fresh.law()) or (law - fresh.law()).abs().max() < 1e-12
        held = len(one.text)
        assert one.cache.lengths[0] == held == fresh.cache.lengths[0]
        for ours, theirs in zip(one.cache.buffers, fresh.cache.buffers, strict=True):
            assert (ours[:, :held] - theirs[:, :held]).abs().max() < 1e-12
        before, token = list(one.text), one.step()
        assert one.text == (before[:-1] if token == 4 else [*before, token])
        lengths.add(len(one.text))
    assert one.taken > 5 and len(lengths) > 5


def test_the_prompt_is_not_taken_back() -> None:
    """Behind the prompt a backspace cannot be drawn, behind one token more it can."""
    behind, seen = set[int](), set[int]()
    for seed in range(60):
        one = writer(1000, seed)
        behind.add(one.step())
        seen.add(one.step())
    assert 4 not in behind and 4 in seen


def test_a_place_is_drawn_anew_after_a_backspace() -> None:
    """Were the noise that of the place alone, what was taken back would come again, for ever."""
    drawn = {writer(1000, seed).step() for seed in range(40)}
    one = writer(1000)
    again = set()
    for _ in range(40):
        again.add(one.step())
        one.text = one.text[:3]
    assert len(again) > 3 and again <= {*range(9)} - {4} and drawn <= {*range(9)} - {4}


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_without_backspaces_it_is_plain_decoding(temperature: float) -> None:
    lm = LanguageModel(ToyModel(vocab_size=9), end_tokens=[7])
    given: dict[str, Any] = {"temperature": temperature, "seed": 3, "max_tokens": 40}
    tokens, taken = backspaced(lm, [1, 2], backspaces=0, backspace=4, **given)
    assert taken == 0 and tokens == lm.generate([1, 2], suppress_tokens=[4], **given).tokens


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"max_tokens": 0}, "1 token or more"),
        ({"temperature": 0.0}, "taken back"),
        ({"backspace": 99}, "has no"),
        ({"backspace": None}, "has no"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], reason: str) -> None:
    asked: dict[str, Any] = {"temperature": 1.0, "backspace": 4, **given}
    with pytest.raises(ConfigError, match=reason):
        backspaced(LanguageModel(ToyModel(vocab_size=9)), [1], **asked)
    with pytest.raises(CapabilityError):
        backspaced(LanguageModel(ToyModel(vocab_size=9, attention="full")), [1], temperature=1.0, backspace=4)


def test_likeness_is_one_of_equals_and_known_of_what_has_nothing_in_common() -> None:
    even = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    assert area(even, even) == pytest.approx(1.0, abs=1e-3)
    apart = area(torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double())
    assert apart == pytest.approx(5 / 1260, rel=1e-2)  # 5 B(6, 5): the curve is (1 - x)^5 against x^5
    nearer = area(torch.tensor([0.6, 0.4]).double(), torch.tensor([0.4, 0.6]).double())
    assert apart < area(torch.tensor([0.9, 0.1]).double(), torch.tensor([0.1, 0.9]).double()) < nearer < 1


def test_clusters_are_found_and_sets_compared() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 20 * torch.eye(3, 8, dtype=torch.float64)
    cloud = centres.repeat_interleave(30, 0) + torch.randn(90, 8, generator=generator, dtype=torch.float64)
    labels = clustered(cloud, 3, directions=3)
    assert [len({*labels[at : at + 30].tolist()}) for at in (0, 30, 60)] == [1, 1, 1] and len({*labels.tolist()}) == 3
    assert likeness(cloud[::2], cloud[1::2], 3) > 0.95 > 0.3 > likeness(cloud[:45], cloud[45:], 3)


def test_the_measurement_refuses_too_few_texts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--steps", "0"]) == 2
    assert "No steps" in capsys.readouterr().err
    assert main(["stories", "--texts", "3"]) == 2
    assert "3 texts" in capsys.readouterr().err
