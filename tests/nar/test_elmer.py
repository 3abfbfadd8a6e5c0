"""ELMER: threshold 1 is the whole depth, places that stop keep their state, and exits are learned where they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from outpace import LanguageModel
from outpace.bench.exits import measure
from outpace.errors import ConfigError
from outpace.models.nar.elmer import Elmer, ElmerConfig
from outpace.models.nar.model import NarModel
from outpace.models.nar.network import Pass
from outpace.testing.one_pass import ToyOnePass
from outpace.testing.spelling import plain_spellings, toy_tokenizer
from outpace.train.nar.network import TrainedNar
from outpace.train.nar.permutation import LayerPermutation, laws_at
from outpace.train.pairs import make_batch

VOCAB, SOURCES = 13, [[5, 9, 3, 9, 4, 6, 0], [4, 0], [7, 7, 11, 0]]
LAYERS = 4


def tiny(seed: int = 0) -> Elmer:
    torch.manual_seed(seed)
    sizes = {"width": 8, "heads": 2, "ffn": 16, "encoder_layers": 1, "decoder_layers": LAYERS}
    net = Elmer(ElmerConfig(vocab_size=VOCAB, **sizes)).double().eval()
    with torch.no_grad():
        net.embed_tokens.weight.mul_(2)
        for weight in net.decoder.parameters():
            weight.mul_(2)
    return net.requires_grad_(False)


def begun(net: Elmer, sources: list[list[int]] = SOURCES) -> Pass:
    return NarModel(net).begin(sources)


def slowly(net: Elmer, source: list[int], threshold: float) -> tuple[Tensor, list[int]]:
    """One row, every place computed in every layer, those that have stopped put back."""
    run = begun(net, [source])
    state, size = run.inputs + net.place_positions.weight[: run.inputs.shape[1]], run.inputs.shape[1]
    depth, laws = [0] * size, [torch.empty(0)] * size
    for layer, block in enumerate(net.decoder):
        moved = block(state, run.is_place[:, None, None], run.states, run.is_real[:, None, None])
        for place in range(size):
            if depth[place] == layer:  # not stopped
                state = state.clone() if place == 0 else state
        state = torch.stack([moved[0, p] if depth[p] == layer else state[0, p] for p in range(size)])[None]
        for place in range(size):
            if depth[place] == layer:
                laws[place] = net.heard(state, layer)[0, place]
                is_sure = float(laws[place].max().exp()) > threshold
                depth[place] = layer + 1 if not is_sure else -(layer + 1)
    return torch.stack(laws), [abs(count) for count in depth]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.8])
def test_exits_are_those_of_a_slow_walk(threshold: float) -> None:
    net = tiny()
    run = begun(net)
    laws, depth = net.exit(run, threshold)
    for row, source in enumerate(SOURCES):
        wanted, layers = slowly(net, source, threshold)
        size = len(wanted)
        assert depth[row].tolist() == [*layers, *[0] * (depth.shape[1] - size)]
        assert torch.allclose(laws[row, :size], wanted, atol=1e-10)


def test_threshold_one_is_the_whole_depth_bit_for_bit() -> None:
    for net in (tiny(), tiny(1).float()):
        run = begun(net)
        laws, depth = net.exit(run, 1.0)
        assert torch.equal(laws, net.finish(run)[0])
        assert torch.equal(depth, run.is_place * LAYERS)
    lm = LanguageModel(NarModel(tiny()), end_tokens=(0,))
    whole = [result.tokens for result in lm.generate(SOURCES, max_tokens=30, method="one-pass")]
    found = lm.generate(SOURCES, max_tokens=30, method="confident-exit", options={"threshold": 1.0})
    assert [result.tokens for result in found] == whole
    assert all("4.00 of 4" in note for result in found for note in result.notes)


def test_lower_thresholds_take_fewer_layers() -> None:
    net = tiny()
    means = []
    for threshold in (0.0, 0.3, 0.5, 0.8, 1.0):
        run = begun(net)
        depth = net.exit(run, threshold)[1]
        means.append(float(depth[run.is_place].double().mean()))
    assert means == sorted(means) and means[0] == 1 and means[1] < means[3] < means[4] == LAYERS


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_rows_alone_equal_rows_in_a_batch(threshold: float) -> None:
    lm = LanguageModel(NarModel(tiny()), end_tokens=(0,))
    options = {"method": "confident-exit", "options": {"threshold": threshold}}
    together = lm.generate(SOURCES, max_tokens=30, **options)
    alone = [lm.generate(source, max_tokens=30, **options) for source in SOURCES]
    assert [(one.tokens, one.notes) for one in together] == [(one.tokens, one.notes) for one in alone]


def test_laws_of_drawn_exits_are_those_of_a_walk_that_stops_there() -> None:
    net = tiny()
    run = begun(net)
    for threshold in (0.3, 0.8):
        laws, depth = net.exit(run, threshold)
        found = laws_at(net, run, depth)
        assert torch.allclose(found[run.is_place], laws[run.is_place], atol=1e-10)


def test_the_target_is_said_with_ends_behind_it_and_must_leave_room_for_one() -> None:
    net = tiny()
    sources, lengths = torch.tensor([[4, 0, 0], [4, 5, 0]]), torch.tensor([7, 8])
    is_real = torch.tensor([[True, True, False], [True, True, True]])
    run = net.begin(sources, is_real, torch.arange(1, 9).expand(2, 8), lengths)
    assert run.is_place.sum(1).tolist() == [7, 8]  # 1.25 a token and 4
    outputs = net.finish(run)
    assert bool((net.nll(outputs, run) > 1e20).all()) and bool((net.aligned(outputs, run) == -1).all())
    run = net.begin(sources, is_real, torch.tensor([[3, 2], [1, 0]]), torch.tensor([2, 1]))
    assert net.aligned(net.finish(run), run).tolist() == [[3, 2, 0, 0, 0, 0, 0, -1], [1, 0, 0, 0, 0, 0, 0, 0]]


def test_the_objective_trains_every_layer() -> None:
    network = TrainedNar(tiny().float().requires_grad_(True))
    rows = [torch.tensor(source).numpy() for source in SOURCES]
    torch.manual_seed(0)
    loss = LayerPermutation(full=0.0)(network, make_batch(rows, rows))
    loss.backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in network.net.exit_norms.parameters())


def test_a_window_of_cross_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="window"):
        Elmer(ElmerConfig(vocab_size=VOCAB, width=8, heads=2, ffn=8, cross_window=2))


def test_layers_texts_and_thresholds_are_told_together() -> None:
    lm = LanguageModel(NarModel(tiny()), toy_tokenizer(plain_spellings(VOCAB)), end_tokens=(0,), name="tiny")
    pairs = [("aAbB", "aA"), ("cC", "bB"), ("dDeEfF", "cC")]
    found = measure(lm, pairs, [1.0, 0.5, 0.0], warm=0)
    assert [one.layers for one in (found[0], found[2])] == [LAYERS, 1] and 1 < found[1].layers < LAYERS
    assert found[0].same == 1 and found[1].place_layers == pytest.approx(
        float(torch.cat([net_depth(lm, source) for source, _ in pairs]).double().mean())
    )
    with pytest.raises(ConfigError, match="no heads"):
        measure(LanguageModel(ToyOnePass(), toy_tokenizer(plain_spellings(VOCAB))), pairs, [1.0])


def net_depth(lm: LanguageModel, source: str) -> Tensor:
    model = lm.target
    assert isinstance(model, NarModel) and isinstance(model.net, Elmer)
    return model.net.exit(model.begin([lm.encode(source)]), 0.5)[1][0]
