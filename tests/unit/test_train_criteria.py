"""What translators minimise: smoothed losses against explicit expectations, transport against its marginals."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.errors import ConfigError
from outpace.train.data import EOS_ID
from outpace.train.pairs import PairBatch, make_batch
from outpace.train.translation.criteria import CrossEntropy, Taught
from outpace.train.translation.network import NetworkFiles, PairNetwork
from outpace.train.translation.smoothing import SequenceSmoothing, TokenSmoothing, edited, keep_probability
from outpace.train.translation.transport import Transport, cosine_costs, ipot

VOCAB, WIDTH = 4, 5


def number(value: Tensor | float) -> float:
    return value.detach().item() if isinstance(value, Tensor) else value


class Bigrams(PairNetwork):
    """Says each token from the one before it and the mean source: float64, and slow to be wrong about."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.Parameter(torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64))
        self.before = nn.Parameter(torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64))

    def all_logits(self, batch: PairBatch) -> Tensor:
        source = (self.before[batch.sources] * batch.mask.unsqueeze(-1)).sum(1, keepdim=True)
        return (self.before[batch.inputs] + source).tanh() @ self.weights.T

    def logits(self, batch: PairBatch) -> Tensor:
        return self.all_logits(batch)[batch.is_real]

    @property
    def table(self) -> Tensor:
        return self.weights

    def export(self) -> NetworkFiles:
        raise NotImplementedError


@dataclass(frozen=True)
class Case:
    network: Bigrams
    batch: PairBatch


@pytest.fixture
def case() -> Case:
    rows = [np.array(ids, dtype=np.int64) for ids in ([2, 3, 1, EOS_ID], [3, EOS_ID])]
    return Case(Bigrams(seed=7), make_batch(rows[::-1], rows))


def surprise(case: Case, row: int, target: tuple[int, ...]) -> float:
    """Return -log p of one target, a token after the other."""
    source = case.batch.sources[row][case.batch.mask[row] == 1].numpy()
    batch = make_batch([source], [np.array(target, dtype=np.int64)])
    logprobs = case.network.logits(batch).log_softmax(-1)
    return -number(sum(logprobs[place, token] for place, token in enumerate(target)))


def targets(case: Case) -> list[list[int]]:
    return [row[row >= 0].tolist() for row in case.batch.labels]


def test_token_smoothing_is_the_expectation_under_rewards_of_tokens(case: Case) -> None:
    temperature, share = 0.7, 0.3
    logprobs = case.network.logits(case.batch).log_softmax(-1).detach()
    labels, wanted = case.batch.labels[case.batch.is_real].tolist(), 0.0
    for place, label in enumerate(labels):
        rewards = [
            number(F.cosine_similarity(case.network.weights[token], case.network.weights[label], dim=0))
            for token in range(VOCAB)
        ]
        weights = [math.exp(reward / temperature) for reward in rewards]
        expected = sum(-weight / sum(weights) * logprobs[place, token] for token, weight in enumerate(weights))
        wanted += number((1 - share) * -logprobs[place, label] + share * expected) / len(labels)
    loss = TokenSmoothing(temperature=temperature, share=share)(case.network, case.batch)
    assert number(loss) == pytest.approx(wanted, rel=1e-6)


def exact_expectation(case: Case, temperature: float, lazy: bool = False) -> float:
    """Return the mean over tokens of E[-log p(y)] under exp(-distance / temperature), summed over every sequence."""
    total = count = 0.0
    for row, target in enumerate(targets(case)):
        weights, losses = [], []
        for body in itertools.product(range(VOCAB), repeat=len(target) - 1):
            drawn = (*body, EOS_ID)
            distance = sum(a != b for a, b in zip(drawn, target, strict=True))
            weights.append(math.exp(-distance / temperature))
            losses.append(surprise(case, row, drawn))
        total += sum(a * b for a, b in zip(weights, losses, strict=True)) / sum(weights)
        count += len(target)
    return total / count


def test_drawn_sequences_follow_the_law_of_the_distance(case: Case) -> None:
    # 20,000 draws of two places against the law over all 16 sequences: chi-square with 15 degrees of freedom.
    temperature, draws = 0.8, 20_000
    labels = torch.tensor([[2, 3, EOS_ID]]).expand(draws, 3)
    # a token that is the end may be drawn inside; the end at the end is never changed
    torch.manual_seed(0)
    drawn = edited(labels, keep_probability(VOCAB, temperature), VOCAB)
    assert (drawn[:, 2] == EOS_ID).all()
    counts = torch.bincount(drawn[:, 0] * VOCAB + drawn[:, 1], minlength=VOCAB**2).double()
    weights = torch.tensor(
        [math.exp(-((a != 2) + (b != 3)) / temperature) for a in range(VOCAB) for b in range(VOCAB)]
    ).double()
    expected = draws * weights / weights.sum()
    assert number(((counts - expected) ** 2 / expected).sum()) < 37.7  # 99.9%


def test_sequence_smoothing_is_the_expectation_over_all_sequences(case: Case) -> None:
    temperature, share, draws = 0.8, 0.4, 3000
    criterion = SequenceSmoothing(temperature=temperature, share=share, draws=draws)
    torch.manual_seed(1)
    with torch.no_grad():
        loss = number(criterion(case.network, case.batch))
    exact = number(CrossEntropy()(case.network, case.batch))
    wanted = (1 - share) * exact + share * exact_expectation(case, temperature)
    assert loss == pytest.approx(wanted, abs=0.02) and abs(loss - exact) > 0.1


def test_lazy_sequence_smoothing_is_label_smoothing(case: Case) -> None:
    # Reading the reference's prefix, each place's expectation stands alone: kept, or evenly one of the others.
    temperature = 0.8
    torch.manual_seed(2)
    with torch.no_grad():
        criterion = SequenceSmoothing(temperature=temperature, share=1.0, draws=3000, is_lazy=True)
        loss = number(criterion(case.network, case.batch))
    spread = (1 - keep_probability(VOCAB, temperature)) * VOCAB / (VOCAB - 1)
    logits, labels = case.network.logits(case.batch), case.batch.labels[case.batch.is_real]
    smoothed = F.cross_entropy(logits, labels, label_smoothing=spread, reduction="none")
    exact = F.cross_entropy(logits, labels, reduction="none")
    wanted = torch.where(labels == EOS_ID, exact, smoothed).mean()
    assert loss == pytest.approx(number(wanted), abs=0.02)


@pytest.mark.parametrize("kind", [TokenSmoothing, SequenceSmoothing])
def test_at_temperature_zero_and_near_it_there_is_cross_entropy(
    case: Case, kind: type[TokenSmoothing | SequenceSmoothing]
) -> None:
    exact = number(CrossEntropy()(case.network, case.batch))
    assert number(kind(temperature=0.0)(case.network, case.batch)) == exact
    assert number(kind(temperature=0.01)(case.network, case.batch)) == pytest.approx(exact, rel=1e-6)
    with pytest.raises(ConfigError, match=r"temperature -1"):
        kind(temperature=-1)
    with pytest.raises(ConfigError, match=r"share of 2"):
        kind(share=2)


def test_the_plan_has_its_marginals_and_is_optimal() -> None:
    # Uniform laws of equal size: the best plan is an assignment, found here by trying all.
    generator = torch.Generator().manual_seed(0)
    costs = torch.rand((1, 4, 4), generator=generator, dtype=torch.float64)
    all_there = torch.ones((1, 4), dtype=torch.bool)
    plan = ipot(costs, all_there, all_there, step=0.5, iterations=400)
    assert plan.sum(1) == pytest.approx(torch.full((1, 4), 0.25).double(), abs=1e-9)
    assert plan.sum(2) == pytest.approx(torch.full((1, 4), 0.25).double(), abs=1e-6)
    best = min(
        sum(number(costs[0, i, j]) for i, j in enumerate(order)) / 4 for order in itertools.permutations(range(4))
    )
    assert number((plan * costs).sum()) == pytest.approx(best, abs=1e-4)


def test_ragged_plans_are_the_plans_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    costs = torch.rand((2, 5, 4), generator=generator, dtype=torch.float64)
    first = torch.arange(5) < torch.tensor([[5], [3]])
    second = torch.arange(4) < torch.tensor([[4], [2]])
    plans = ipot(costs, first, second, step=0.5, iterations=200)
    assert plans.sum((1, 2)) == pytest.approx(torch.ones(2).double()) and not plans[1, 3:].any()
    assert plans[0].sum(1) == pytest.approx(torch.full((5,), 1 / 5).double(), abs=1e-4)
    assert plans[1, :3].sum(1) == pytest.approx(torch.full((3,), 1 / 3).double(), abs=1e-4)
    alone = ipot(costs[1:, :3, :2], first[1:, :3], second[1:, :2], step=0.5, iterations=200)
    assert torch.allclose(plans[1, :3, :2], alone[0], atol=1e-12)


def test_transport_adds_the_cost_and_gradients_flow_through_the_outputs(case: Case) -> None:
    network, batch = case.network, case.batch
    text = CrossEntropy()(network, batch)
    criterion = Transport(weight=0.5, iterations=100)
    loss = criterion(network, batch)
    # By hand, a row at a time: mean embeddings under the sharpened laws, the plan of each row alone.
    costs, logits = [], network.all_logits(batch)
    for row, target in enumerate(targets(case)):
        there = torch.ones((1, len(target)), dtype=torch.bool)
        written = ((logits[row, : len(target)] / 0.1).softmax(-1) @ network.weights).unsqueeze(0)
        pairwise = cosine_costs(written, network.weights[target].unsqueeze(0))
        costs.append(number((pairwise * ipot(pairwise, there, there, 0.5, 100)).sum()))
    assert number(loss) == pytest.approx(number(text) + 0.5 * sum(costs) / 2, rel=1e-5)
    (through_text,) = torch.autograd.grad(text, network.before)
    (through_both,) = torch.autograd.grad(loss, network.before)
    assert (through_both - through_text).abs().max() > 1e-4 and through_both.isfinite().all()
    assert number(Transport(weight=0.0)(network, batch)) == number(text)
    with pytest.raises(ConfigError, match="no transport with weight"):
        Transport(iterations=0)


def test_a_teacher_is_matched_by_its_own_copy(case: Case) -> None:
    teacher = Bigrams(seed=7).requires_grad_(False)
    loss = Taught(teacher, share=1.0)(case.network, case.batch)
    (gradient,) = torch.autograd.grad(loss, case.network.before)
    assert gradient.abs().max() < 1e-6  # a law is learnt best by itself
    (other,) = torch.autograd.grad(Taught(Bigrams(seed=3), share=1.0)(case.network, case.batch), case.network.before)
    assert other.abs().max() > 1e-3


def test_label_smoothing_spreads_a_share_evenly(case: Case) -> None:
    logprobs = case.network.logits(case.batch).log_softmax(-1)
    labels = case.batch.labels[case.batch.is_real]
    exact, even = F.nll_loss(logprobs, labels), -logprobs.mean()
    assert number(CrossEntropy(0.2)(case.network, case.batch)) == pytest.approx(number(0.8 * exact + 0.2 * even))
