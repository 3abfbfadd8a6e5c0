"""Aligned cross-entropy: equal to the search through all alignments, for single rows and ragged batches."""

import numpy as np
import pytest
import torch

from outpace.errors import ConfigError
from outpace.models.nar.ctc import Ctc, CtcConfig
from outpace.train.nar.axe import AlignedCrossEntropy, aligned_cost
from outpace.train.nar.network import TrainedNar
from outpace.train.pairs import make_batch

V = 5


def _search(laws: torch.Tensor, target: list[int], price: float) -> float:
    """Return the least cost over all ways, walked one by one: (place, tokens done) and three steps from each."""
    says = (-laws).tolist()
    best = [float("inf")]

    def walk(at: int, done: int, cost: float) -> None:
        # `at` places are used up; a token is passed over at the last place used, or at the first before any is.
        if at == len(says) and done == len(target):
            best[0] = min(best[0], cost)
        if done < len(target):
            walk(at, done + 1, cost + price * says[max(at - 1, 0)][target[done]])
            if at < len(says):
                walk(at + 1, done + 1, cost + says[at][target[done]])
        if at < len(says):
            walk(at + 1, done, cost + says[at][V - 1])

    walk(0, 0, 0.0)
    return best[0]


@pytest.mark.parametrize("price", [0.5, 1.0, 3.0])
def test_the_program_finds_the_best_of_all_alignments(price: float) -> None:
    rows, sizes = [[0, 1, 2, 3], [2, 2], [], [3, 1, 0], [1]], [3, 5, 2, 1, 4]
    laws = torch.randn(5, 5, V, generator=torch.Generator().manual_seed(1), dtype=torch.float64).mul(2).log_softmax(-1)
    targets, places = torch.zeros(5, 4, dtype=torch.long), torch.tensor(sizes)
    for row, own in zip(targets, rows, strict=True):
        row[: len(own)] = torch.tensor(own, dtype=torch.long)
    lengths = torch.tensor([len(own) for own in rows])
    found = aligned_cost(laws, places, targets, lengths, V - 1, price)
    for at, (own, size) in enumerate(zip(rows, sizes, strict=True)):
        assert float(found[at]) == pytest.approx(_search(laws[at, :size], own, price), abs=1e-10)
        alone = laws[at : at + 1, :size], places[at : at + 1], torch.tensor([own]).long(), lengths[at : at + 1]
        assert float(aligned_cost(*alone, V - 1, price)) == pytest.approx(float(found[at]), abs=1e-10)


def test_its_gradient_is_that_of_finite_differences() -> None:
    logits = torch.randn(2, 3, V, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    sizes = torch.tensor([3, 2]), torch.tensor([[1, 2, 3], [0, 1, 0]]), torch.tensor([3, 2])
    assert torch.autograd.gradcheck(lambda given: aligned_cost(given.log_softmax(-1), *sizes, V - 1, 2.0), logits)


def test_a_network_learns_by_it_and_one_without_a_blank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = Ctc(CtcConfig(vocab_size=V, width=16, heads=2, ffn=16, encoder_layers=1, decoder_layers=1, dropout=0.0))
    rows = [np.array([1, 2, 3, 0]), np.array([4, 3, 0])]
    network, batch, objective = TrainedNar(net), make_batch(rows, rows), AlignedCrossEntropy()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        losses.append(objective(network, batch))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.2 * losses[0]
    assert network.translate(batch.sources, batch.mask, 9) == [[1, 2, 3], [4, 3]]
    monkeypatch.setattr(Ctc, "extra_symbols", 0)
    with pytest.raises(ConfigError, match="Ctc has no blank"):
        objective(network, batch)
