"""A graph of places: blocks equal the plain loss, rows their batch, and what cannot be reached is counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from outpace import kernels
from outpace.errors import ConfigError
from outpace.models.nar.dag import Dag, DagConfig
from outpace.models.nar.model import NarModel
from outpace.models.nar.network import Pass
from outpace.train.data import EOS_ID, MASK_ID
from outpace.train.nar.infilling import Infilling, fragments, show
from outpace.train.nar.network import TrainedNar
from outpace.train.nar.objectives import Glancing, Likelihood
from outpace.train.pairs import PairBatch, PairBatches

SIZES = DagConfig(
    vocab_size=17, width=16, heads=2, ffn=24, encoder_layers=1, decoder_layers=1, dropout=0.0, factor=3, reach=5,
    link_heads=2, block=7, max_source=12, max_positions=36,
)  # fmt: skip


def small(seed: int = 0) -> Dag:
    """Return a graph with random weights in float64."""
    torch.manual_seed(seed)
    return Dag(SIZES).double().eval()


def laid_out(net: Dag) -> Pass:
    """Return a ragged batch of three on its way."""
    sources = torch.tensor([[3, 4, 5, 6, 0], [7, 8, 0, 0, 0], [9, 10, 11, 0, 0]])
    is_real = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    targets = torch.tensor([[5, 6, 7, 8], [4, 0, 0, 0], [9, 9, 0, 0]])
    return net.begin(sources, is_real, targets, torch.tensor([4, 1, 2]))


def test_blocks_of_places_give_the_loss_and_gradient_of_all_at_once() -> None:
    net = small()
    weights = [weight for name, weight in net.named_parameters() if not name.startswith("source_positions")]
    found = []
    for loss in (lambda run: net.loss(run), lambda run: net.nll(net.finish(run), run)):
        losses = loss(laid_out(net))
        found.append((losses, *torch.autograd.grad((losses * torch.tensor([1.0, 2.0, 3.0])).sum(), weights)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_links_are_laws_and_lead_forward_to_real_places_alone() -> None:
    net = small(1)
    run = laid_out(net)
    links = net.finish(run)[1]
    for row, size in enumerate(run.is_place.sum(1).tolist()):
        torch.testing.assert_close(links[row, : size - 1].exp().sum(-1), torch.ones(size - 1, dtype=torch.float64))
        ahead = torch.arange(links.shape[1])[:, None] + 1 + torch.arange(SIZES.reach)
        assert (links[row][ahead >= size] == float("-inf")).all()


def test_a_row_alone_is_itself_in_a_ragged_batch() -> None:
    model = NarModel(small(2))
    sources = [[3, 4, 5, 6, 0], [7, 0], [9, 10, 11, 0]]
    for one, law in zip(sources, model.write(sources), strict=True):
        torch.testing.assert_close(model.write([one])[0], law)


def test_each_place_on_the_best_path_is_told_its_token() -> None:
    net = small(3)
    run = laid_out(net)
    told = net.aligned(net.finish(run), run)
    assert [[token for token in row if token >= 0] for row in told.tolist()] == [[5, 6, 7, 8], [4], [9, 9]]


def test_a_glance_in_blocks_is_what_a_whole_pass_says() -> None:
    net = small(7)
    run = laid_out(net)
    outputs = net.finish(run)
    with torch.no_grad():
        wanted, said = net.glance(run)
    assert torch.equal(wanted, net.aligned(outputs, run))
    assert torch.equal(said, outputs[0].argmax(-1))


def pair_batch(targets: list[list[int]]) -> PairBatch:
    """Return a batch whose sources have two tokens: six places each."""
    width = max(map(len, targets))
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in targets])
    sources = torch.tensor([[3, 0]] * len(targets))
    return PairBatch(sources, torch.ones_like(sources), torch.zeros_like(labels), labels)


@pytest.mark.parametrize("objective", [Likelihood(), Glancing()])
def test_a_target_longer_than_its_graph_is_left_out_counted_and_named(objective: Likelihood | Glancing) -> None:
    network = TrainedNar(small(4))
    short, long = [5, 6, 0], [5, 6, 7, 8, 9, 10, 0]
    torch.manual_seed(0)
    alone = network.loss(pair_batch([short]), objective)
    assert network.notes() == []
    torch.manual_seed(0)
    both = network.loss(pair_batch([short, long]), objective)
    both.backward()
    if isinstance(objective, Likelihood):
        torch.testing.assert_close(both, alone)
    assert all(w.grad is None or bool(w.grad.isfinite().all()) for w in network.parameters())
    (note,) = network.notes()
    assert "checkpoint: 1, " in note
    assert "6 tokens with 6 places" in note
    assert network.notes() == []


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 10 places"):
        Dag(DagConfig(vocab_size=5, width=8, heads=2, ffn=8, factor=4, max_source=9, max_positions=10))


def test_a_fragment_and_what_stands_around_it_make_the_text() -> None:
    split, text = fragments(0.2, 0.5), np.array([5, 6, 7, 8, 9, 10, 11, 12, 13, 14, EOS_ID])
    for seed in range(20):
        source, target = split(text, np.random.default_rng(seed))
        assert source[-1] == target[-1] == EOS_ID
        assert 2 <= len(target) - 1 <= 5
        (hole,) = (source == MASK_ID).nonzero()[0]
        np.testing.assert_array_equal(np.concatenate([source[:hole], target[:-1], source[hole + 1 :]]), text)


def test_batches_of_fragments_depend_on_the_step_alone() -> None:
    texts = tuple(np.array([*range(5, 15), EOS_ID]) for _ in range(3))
    batches = PairBatches(texts, texts, 64, seed=1, split=fragments(0.3, 0.7))
    first, again, later = (batches.batch(step) for step in (0, 0, 1))
    assert torch.equal(first.labels, again.labels)
    assert torch.equal(first.sources, again.sources)
    assert not (first.labels.shape == later.labels.shape and torch.equal(first.labels, later.labels))


def test_infilling_shows_a_share_of_the_target_at_its_places() -> None:
    network = TrainedNar(small(5))
    run = network.begin(pair_batch([[5, 6, 7, 0]]))
    wanted = torch.tensor([[-1, 5, 6, -1, 7, -1]])
    before = run.inputs.clone()
    assert not show(network.net, run, wanted, 0.0).any()
    assert show(network.net, run, wanted, 1.0).tolist() == [[False, True, True, False, True, False]]
    torch.testing.assert_close(run.inputs[0, [1, 2, 4]], network.net.embed_tokens(torch.tensor([5, 6, 7])))
    torch.testing.assert_close(run.inputs[0, [0, 3, 5]], before[0, [0, 3, 5]])
    assert int(show(network.net, run, wanted, 0.7).sum()) == 2
    assert network.loss(pair_batch([[5, 6, 7, 0]]), Infilling(0.5)).isfinite()


def test_a_graph_on_compiled_kernels_says_what_its_modules_say() -> None:
    torch.manual_seed(6)
    config = DagConfig(
        vocab_size=60, width=32, heads=4, ffn=48, encoder_layers=2, decoder_layers=2, factor=4, reach=9,
        max_source=12, max_positions=48,
    )  # fmt: skip
    plain, fast = NarModel(Dag(config)), NarModel(Dag(config))
    fast.net.load_state_dict(plain.net.state_dict())
    if not fast.compile(kernels):
        pytest.skip("no compiler here")
    sources = [[5, 6, 7, 8, 0], [9, 0]]
    with torch.no_grad():
        wanted, found = (model.net.finish(model.begin(sources)) for model in (plain, fast))
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other[1, :8], one[1, :8], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(other[0], one[0], atol=2e-5, rtol=1e-5)
