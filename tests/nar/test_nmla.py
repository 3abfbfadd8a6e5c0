"""Non-monotonic alignments against every text and every assignment written out, in float64."""

from __future__ import annotations

from collections import Counter
from itertools import permutations, product

import numpy as np
import pytest
import torch
from torch import Tensor

from outpace.errors import CapabilityError, ConfigError
from outpace.models.nar.ctc import Ctc, CtcConfig
from outpace.models.nar.dag import Dag, DagConfig
from outpace.train.nar.network import TrainedNar
from outpace.train.nar.nmla import Bipartite, NonMonotonic, assign, expected_grams, expected_total, ngram_f1
from outpace.train.nar.nmla import target_grams as grams_of
from outpace.train.nar.objectives import Likelihood
from outpace.train.pairs import make_batch

V = 2  # symbols beside the blank
TARGETS = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 1, 1, 0]])
LENGTHS, PLACES = torch.tensor([4, 3, 1, 4]), torch.tensor([4, 4, 3, 2])
IS_PLACE = torch.arange(4) < PLACES[:, None]


def texts(log_probs: Tensor, places: int) -> list[tuple[list[int], Tensor]]:
    """Return every alignment's text, and how likely it is."""
    found = []
    for path in product(range(V + 1), repeat=places):
        text = [c for at, c in enumerate(path) if c != V and (at == 0 or path[at - 1] != c)]
        found.append((text, torch.stack([log_probs[at, c] for at, c in enumerate(path)]).sum().exp()))
    return found


def counted(text: list[int], order: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(text[at : at + order]) for at in range(len(text) - order + 1))


@pytest.mark.parametrize("order", [1, 2])
def test_f1_is_that_of_all_texts(order: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 4, V + 1, dtype=torch.float64, requires_grad=True)
    log_probs = logits.log_softmax(-1)
    found = ngram_f1(log_probs, IS_PLACE, TARGETS, LENGTHS, order)
    grams, wanted = grams_of(TARGETS, LENGTHS, order)
    counts, totals = expected_grams(log_probs, IS_PLACE, grams), expected_total(log_probs, IS_PLACE, order)
    rows = []
    for row in range(4):
        every = texts(log_probs[row], int(PLACES[row]))
        target = counted(TARGETS[row, : LENGTHS[row]].tolist(), order)
        for at, gram in enumerate(grams[row].tolist()):
            mean = torch.stack([mass * counted(text, order)[tuple(gram)] for text, mass in every]).sum()
            torch.testing.assert_close(counts[row, at], mean, rtol=1e-10, atol=1e-12)
        total = torch.stack([mass * max(len(text) - order + 1, 0) for text, mass in every]).sum()
        torch.testing.assert_close(totals[row], total, rtol=1e-10, atol=1e-12)
        shared = [
            torch.stack([mass * counted(text, order)[gram] for text, mass in every]).sum().clamp(max=number)
            for gram, number in target.items()
        ]
        matches = torch.stack(shared).sum() if shared else torch.zeros((), dtype=torch.float64)
        rows.append(2 * matches / (total + target.total()))
        assert int(wanted[row].sum()) == target.total()
    torch.testing.assert_close(found, torch.stack(rows), rtol=1e-10, atol=1e-12)
    slopes = [torch.autograd.grad(side.sum(), logits, retain_graph=True)[0] for side in (found, torch.stack(rows))]
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-10)


def test_the_best_assignment_is_found() -> None:
    draws = np.random.default_rng(0)
    for _ in range(150):
        rows = int(draws.integers(0, 5))
        columns = rows + int(draws.integers(0, 4))
        costs = (
            draws.normal(size=(rows, columns)) if draws.random() < 0.7 else 1.0 * draws.integers(0, 3, (rows, columns))
        )
        found = assign(costs)
        best = min(sum(costs[i, j] for i, j in enumerate(way)) for way in permutations(range(columns), rows))
        assert len(set(found.tolist())) == rows and costs[np.arange(rows), found].sum() == pytest.approx(best, abs=1e-9)


CONFIG = CtcConfig(vocab_size=9, width=16, heads=2, ffn=24, encoder_layers=1, decoder_layers=1, dropout=0.0, factor=2)
ROWS = [([3, 4, 5, 0], [6, 7, 7, 0]), ([8, 0], [5, 0]), ([3, 8, 8, 4, 0], [4, 3, 8, 6, 5, 0])]


def batch_of(rows: list[tuple[list[int], list[int]]]) -> object:
    return make_batch(*([np.array(side, dtype=np.int64) for side in sides] for sides in zip(*rows, strict=True)))


def test_the_bipartite_loss_is_that_of_the_best_permutation() -> None:
    torch.manual_seed(1)
    network = TrainedNar(Ctc(CONFIG).double()).eval()
    total = 0.0
    for row in ROWS[:2]:
        run = network.begin(batch_of([row]))  # type: ignore[arg-type]
        log_probs = network.net.finish(run)[0][0]
        target = row[1][:-1]
        filled = [*target, *[9] * (len(log_probs) - len(target))]
        costs = [-sum(log_probs[at, c] for at, c in enumerate(way)) for way in set(permutations(filled))]
        total += float(torch.stack(costs).min().detach())
    found = network.loss(batch_of(ROWS[:2]), Bipartite(margin=1e9))  # type: ignore[arg-type]
    assert found.item() == pytest.approx(total / 4, rel=1e-10)
    assert network.loss(batch_of(ROWS[:2]), Bipartite(margin=1.0)).item() < found.item()  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", [NonMonotonic(), NonMonotonic(order=1), Bipartite()])
def test_rows_count_alike_alone_and_together(objective: NonMonotonic | Bipartite) -> None:
    torch.manual_seed(2)
    network = TrainedNar(Ctc(CONFIG).double()).eval()
    together = network.loss(batch_of(ROWS), objective)  # type: ignore[arg-type]
    alone = [network.loss(batch_of([row]), objective).item() for row in ROWS]  # type: ignore[arg-type]
    is_bipartite = isinstance(objective, Bipartite)
    weights = [len(row[1]) - 1 if is_bipartite else int(len(row[1]) > objective.order) for row in ROWS]
    mean = sum(w * loss for w, loss in zip(weights, alone, strict=True)) / sum(weights)
    assert together.item() == pytest.approx(mean, rel=1e-9)
    together.backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in network.parameters() if weight.grad is not None)


def test_the_likelihood_may_stand_beside() -> None:
    network = TrainedNar(Ctc(CONFIG).double()).eval()
    losses = [network.loss(batch_of(ROWS), one).item() for one in (NonMonotonic(), Likelihood())]  # type: ignore[arg-type]
    both = network.loss(batch_of(ROWS), NonMonotonic(likelihood=0.5))  # type: ignore[arg-type]
    assert both.item() == pytest.approx(losses[0] + 0.5 * losses[1], rel=1e-9)


def test_what_is_no_ctc_is_refused() -> None:
    with pytest.raises(ConfigError, match="order 3"):
        NonMonotonic(order=3)
    net = Dag(DagConfig(vocab_size=9, width=16, heads=2, max_positions=2048))
    with pytest.raises(CapabilityError, match="not of Dag"):
        TrainedNar(net).loss(batch_of(ROWS), NonMonotonic())  # type: ignore[arg-type]
