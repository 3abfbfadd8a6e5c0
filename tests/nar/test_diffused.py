"""Layers as steps of a diffusion: what each reads, how much is shown to it, and that a text takes one pass."""

from __future__ import annotations

import pytest
import torch

from outpace.errors import ConfigError
from outpace.models.nar.ctc import Ctc, CtcConfig
from outpace.models.nar.diffused import Diffused, DiffusedConfig
from outpace.models.nar.model import NarModel
from outpace.models.nar.network import UNSAID
from outpace.testing.one_pass import toy_network
from outpace.train.nar.network import TrainedNar
from outpace.train.nar.objectives import Likelihood
from outpace.train.nar.residual import ResidualGlancing, residual_places
from outpace.train.pairs import PairBatch

SIZES = {"vocab_size": 11, "width": 16, "heads": 2, "ffn": 24, "encoder_layers": 1, "dropout": 0.0, "factor": 2}
SOURCES = [[3, 4, 5, 6, 0], [7, 0], [9, 10, 8, 0]]


def small(layers: int = 3, weight: float = 0.5) -> Diffused:
    torch.manual_seed(1)
    return Diffused(DiffusedConfig(decoder_layers=layers, step_weight=weight, **SIZES)).double().eval()


def pairs() -> PairBatch:
    sources, labels = torch.tensor([[3, 4, 5, 0], [7, 8, 0, 0]]), torch.tensor([[5, 6, 5, 0], [4, 4, 0, -100]])
    return PairBatch(sources, torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]), torch.zeros_like(labels), labels)


def test_a_row_alone_is_itself_in_a_ragged_batch() -> None:
    model = NarModel(small())
    for source, law in zip(SOURCES, model.write(SOURCES), strict=True):
        torch.testing.assert_close(model.write([source])[0], law)


def test_a_layer_reads_the_mean_of_what_was_said_or_what_it_is_told() -> None:
    net = small(layers=2)
    run = TrainedNar(net).begin(pairs())
    net.finish(run)
    table, (step,) = net.embed_tokens.weight, run.extra["steps"]
    torch.testing.assert_close(net._handed_on(run, 0), step.exp() @ table)
    told = torch.zeros(run.is_place.shape, dtype=torch.bool)
    told[0, 2] = True
    run.extra.update(told=[told], wanted=torch.full(run.is_place.shape, 5))
    handed = net._handed_on(run, 0)
    torch.testing.assert_close(handed[0, 2], table[5])
    torch.testing.assert_close(handed[~told], (step.exp() @ table)[~told])


def test_what_is_shown_is_a_share_of_what_is_wrong_and_still_hidden() -> None:
    wanted = torch.tensor([[1, 2, 3, 4, 5, 6, UNSAID, UNSAID], [1, 2, UNSAID, UNSAID, UNSAID, UNSAID, UNSAID, UNSAID]])
    wrong, right = torch.zeros_like(wanted), wanted.clamp(min=0)
    torch.manual_seed(0)
    first, second, third = residual_places([wrong, wrong, right], wanted, [0.5, 0.67, 1.0])
    assert first.sum(1).tolist() == [3, 1]
    assert (second & first).sum(1).tolist() == [3, 1]  # none is hidden again
    assert second.sum(1).tolist() == [5, 1]  # two of three that were left, none of one
    assert torch.equal(third, second)  # nothing is wrong any more
    assert not (third & (wanted == UNSAID)).any()


def test_without_showing_it_is_the_likelihood_of_all_layers() -> None:
    network = TrainedNar(small())
    found = network.loss(pairs(), ResidualGlancing(first=0.0, last=0.0))
    torch.testing.assert_close(found, network.loss(pairs(), Likelihood()))
    shown = network.loss(pairs(), ResidualGlancing(first=1.0, last=1.0, fade=1.0))
    assert not torch.isclose(shown, found)


def test_the_loss_weighs_the_layers() -> None:
    net = small(weight=2.0)
    run = TrainedNar(net).begin(pairs())
    last = net.nll(net.finish(run), run)
    steps = [Ctc.nll(net, [step], run) for step in run.extra["steps"]]
    assert len(steps) == 2
    torch.testing.assert_close(net.loss(run), (last + 2.0 * (steps[0] + steps[1]) / 2) / 3)


def test_other_networks_are_refused() -> None:
    network = TrainedNar(Ctc(CtcConfig(decoder_layers=1, **SIZES)))
    with pytest.raises(ConfigError, match="cannot train a Ctc"):
        network.loss(pairs(), ResidualGlancing())


def test_it_is_a_kind_of_ours() -> None:
    assert isinstance(toy_network("ctc-diffused").net, Diffused)
