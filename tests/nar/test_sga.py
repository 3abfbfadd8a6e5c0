"""A frozen masked encoder that generates: only what is new changes, and it learns to write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from outpace.methods.whole.sundae import Sundae
from outpace.models.nar.model import NarModel
from outpace.models.nar.sga import Sga, SgaConfig
from outpace.run.row import Row
from outpace.sampling import row_key
from outpace.testing.world import drive, make_run
from outpace.train.loop import _optimisers
from outpace.train.nar.network import TrainedNar
from outpace.train.nar.refining import MaskedTexts, Unrolled
from outpace.train.pairs import PairBatch, make_batch
from outpace.train.recipes import TRANSLATIONS
from outpace.train.translation.network import Criterion

VOCAB = 17
SOURCES = [[5, 6, 7, 8, 9, 10, 0], [9, 0], [4, 4, 12, 13, 0]]
TARGETS = [[5, 7, 9, 11, 0], [6, 6, 8, 0], [12, 13, 12, 14, 15, 0]]
SIZES: dict[str, Any] = {"width": 16, "heads": 2, "ffn": 24, "encoder_layers": 2, "rank": 8, "reach": 4}


def network(is_frozen: bool) -> TrainedNar:
    torch.manual_seed(0)
    config = SgaConfig(vocab_size=VOCAB, max_source=12, max_positions=12, dropout=0.0, is_frozen=is_frozen, **SIZES)
    return TrainedNar(Sga(config))


def trained(network: TrainedNar, objective: Criterion, batch: PairBatch, steps: int) -> list[float]:
    recipe = replace(TRANSLATIONS["nar-sga"], matrix_rate=5e-2, other_rate=2e-2)
    optimisers, losses = _optimisers(network, recipe)[0], []
    for _ in range(steps):
        loss = objective(network, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def written(net: Sga, sources: list[list[int]]) -> list[list[int]]:
    rows = [Row([2], 1, row_key(1, at), 40, (0,), source=source) for at, source in enumerate(sources)]
    drive(make_run(Sundae(passes=4), target=NarModel(net)), rows)
    return [row.written for row in rows]


def test_a_masked_encoder_learns_then_stays_bit_for_bit_while_its_bridges_learn_to_write() -> None:
    first = network(is_frozen=False)
    bridges = {name: weight.clone() for name, weight in first.net.state_dict().items() if "bridges" in name}
    losses = trained(first, MaskedTexts(share=0.5), make_batch(SOURCES + TARGETS, SOURCES + TARGETS), 30)  # type: ignore[arg-type]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert all(torch.equal(first.net.state_dict()[name], weight) for name, weight in bridges.items())

    network_ = network(is_frozen=True)
    network_.load_state_dict(first.state_dict())
    net = network_.net
    assert isinstance(net, Sga)
    kept = [weight.detach().clone() for weight in net.frozen()]
    trained(network_, Unrolled(begin="blank"), make_batch(SOURCES, TARGETS), 60)  # type: ignore[arg-type]
    assert all(torch.equal(new, old) for new, old in zip(net.frozen(), kept, strict=True))
    changed = [
        name for name, weight in net.state_dict().items() if not torch.equal(weight, first.net.state_dict()[name])
    ]
    assert {name.split(".")[0] for name in changed} == {"bridges", "lengths"}
    assert written(net.double().eval(), SOURCES) == TARGETS


def test_few_weights_are_new() -> None:
    shape = TRANSLATIONS["nar-sga"].shape
    net = shape.build(2500).net  # type: ignore[attr-defined]
    learned = sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
    assert 0 < learned < 0.15 * sum(weight.numel() for weight in net.frozen())


def test_a_row_is_written_as_it_is_alone() -> None:
    net = network(is_frozen=True).net.double().eval()
    for weight in net.parameters():
        weight.data.add_(0.3 * torch.randn(weight.shape, dtype=weight.dtype))
    assert isinstance(net, Sga)
    assert written(net, SOURCES) == [written(net, [source])[0] for source in SOURCES]
