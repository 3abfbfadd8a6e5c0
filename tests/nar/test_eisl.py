"""The edit-invariant loss: equal to a direct count, deaf to shifts, the same for a row alone; and what it refuses."""

from math import exp

import numpy as np
import pytest
import torch

from outpace.errors import ConfigError
from outpace.models.nar.cmlm import Cmlm, CmlmConfig
from outpace.models.nar.ctc import Ctc, CtcConfig
from outpace.train.nar.eisl import EditInvariant, ngram_loss
from outpace.train.nar.network import TrainedNar
from outpace.train.pairs import make_batch

V = 7


def _laws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1)


def _direct(laws: torch.Tensor, target: list[int], order: int) -> tuple[float, int]:
    """Return the loss of one row, n-gram by n-gram and window by window, as the paper writes it."""
    total, grams = 0.0, [target[at : at + order] for at in range(len(target) - order + 1)]
    for gram in grams:
        scores = [
            sum(float(laws[start + at, token]) for at, token in enumerate(gram)) / order
            for start in range(len(laws) - order + 1)
        ]
        weights = [exp(score) / sum(map(exp, scores)) for score in scores]
        total -= sum(weight * score for weight, score in zip(weights, scores, strict=True))
    return total, len(grams)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_convolution_is_the_direct_count_in_ragged_batches(order: int) -> None:
    sizes, rows = [(6, 4), (3, 5), (2, 1), (5, 5)], [[1, 2, 1, 2], [3, 4, 5, 6, 0], [2], [1, 1, 1, 3, 4]]
    laws, targets = _laws(4, 6), torch.zeros(4, 5, dtype=torch.long)
    for row, own in zip(targets, rows, strict=True):
        row[: len(own)] = torch.tensor(own)
    places, lengths = torch.tensor(sizes).unbind(1)
    found, count = ngram_loss(laws, places, targets, lengths, order)
    for at, (own, (size, _)) in enumerate(zip(rows, sizes, strict=True)):
        fits = order <= min(size, len(own))
        expected, grams = _direct(laws[at, :size], own, order) if fits else (0.0, 0)
        assert float(found[at]) == pytest.approx(expected, abs=1e-12)
        assert int(count[at]) == grams
        alone, _ = ngram_loss(
            laws[at : at + 1, :size], places[at : at + 1], torch.tensor([own]), lengths[at : at + 1], order
        )
        assert float(alone) == pytest.approx(expected, abs=1e-12)


def test_a_shift_costs_nothing_here_and_much_in_cross_entropy() -> None:
    target = torch.tensor([[1, 2, 3, 4, 5]])

    def sure_of(text: list[int]) -> torch.Tensor:
        return (torch.nn.functional.one_hot(torch.tensor([text]), V).double() * 12).log_softmax(-1)

    sizes = torch.tensor([6]), target, torch.tensor([5])
    straight, shifted = sure_of([1, 2, 3, 4, 5, 0]), sure_of([0, 1, 2, 3, 4, 5])
    losses = [float(ngram_loss(laws, *sizes, order=2)[0]) for laws in (straight, shifted, sure_of([0, 5, 4, 3, 2, 1]))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[2] > losses[0] + 10
    crossed = [float(-laws[0, :5].gather(1, target.T).mean()) for laws in (straight, shifted)]
    assert crossed[1] > crossed[0] + 5


class _Said(torch.nn.Module):
    """A network that says the same laws whatever it is shown."""

    def __init__(self, laws: torch.Tensor) -> None:
        super().__init__()
        self.laws = laws

    def logits(self, batch) -> torch.Tensor:
        return self.laws[batch.is_real]


def test_a_network_that_writes_token_by_token_has_it_too() -> None:
    rows = [np.array([1, 2, 3, 0]), np.array([4, 0])]
    batch, laws = make_batch(rows, rows), _laws(2, 4, seed=3).float()
    losses = [[_direct(laws[at, : len(row)], row.tolist(), order) for at, row in enumerate(rows)] for order in (1, 2)]
    expected = sum(sum(loss for loss, _ in row) / sum(count for _, count in row) for row in losses) / 2
    objective = EditInvariant(orders=(1, 2), share=1.0, is_drawn=False)
    assert float(objective(_Said(laws), batch)) == pytest.approx(expected, rel=1e-5)
    likelihood = -float(torch.cat([laws[at, range(len(row)), row] for at, row in enumerate(rows)]).mean())
    assert float(EditInvariant(share=0.0)(_Said(laws), batch)) == pytest.approx(likelihood, rel=1e-5)


def test_a_network_of_one_pass_learns_by_it() -> None:
    torch.manual_seed(0)
    config = CmlmConfig(vocab_size=V, width=16, heads=2, ffn=16, encoder_layers=1, decoder_layers=1, dropout=0.0)
    rows = [np.array([3, 4, 5, 6, 0]), np.array([6, 5, 3, 0]), np.array([4, 0])]
    network, batch, objective = TrainedNar(Cmlm(config)), make_batch(rows, rows), EditInvariant()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        losses.append(objective(network, batch))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.3 * losses[0]
    assert network.translate(batch.sources, batch.mask, 9)[0] == [3, 4, 5, 6]


def test_kinds_with_other_places_and_wrong_orders_are_refused() -> None:
    net = Ctc(CtcConfig(vocab_size=V, width=8, heads=2, ffn=8, encoder_layers=1, decoder_layers=1))
    rows = [np.array([1, 2, 3, 0])]
    with pytest.raises(ConfigError, match="as many places as a target has tokens"):
        EditInvariant()(TrainedNar(net), make_batch(rows, rows))
    for orders in ((), (0, 2)):
        with pytest.raises(ConfigError, match="orders of n-grams"):
            EditInvariant(orders=orders)
