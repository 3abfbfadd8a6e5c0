"""Learned orders: the bound against every order enumerated, its gradient, and the method against the policy."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.methods.whole.learned_order import LearnedOrder
from outpace.models.nar.model import NarModel
from outpace.models.nar.network import Pass
from outpace.models.nar.ordered import Ordered, OrderedConfig, bound, chance_of, order_of, part_of_bound
from outpace.run.row import Row
from outpace.sampling import Sampling, row_key
from outpace.testing.gtest import g_test
from outpace.testing.world import drive, make_run
from outpace.train.nar.molecules import atoms

MASK, END = 1, 0


def network(order: str = "learned", length: int = 3, vocab: int = 6, seed: int = 1) -> Ordered:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"width": 8, "heads": 2, "ffn": 8, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}
    config = OrderedConfig(
        vocab_size=vocab, length=length, order=order, max_source=8, max_positions=8, end_token=END, **sizes
    )
    net = Ordered(config).double().eval()
    for head in (net.policy, net.guess):  # a policy and a guess that prefer some places
        torch.nn.init.normal_(head.weight)
    return net


def laid(net: Ordered, rows: int, targets: Tensor | None = None) -> Pass:
    sources = torch.tensor([[3, 4, 5, 0]] * rows)
    lengths = None if targets is None else torch.full((rows,), targets.shape[1])
    return net.begin(sources, torch.ones_like(sources, dtype=torch.bool), targets, lengths)


def paths(net: Ordered, text: list[int]) -> tuple[Tensor, Tensor]:
    """Of every order: the log-probability of order and text, and that of the guess; place by place, in plain loops."""
    joint, guess = list[Tensor](), list[Tensor]()
    for order in itertools.permutations(range(len(text))):
        tokens, log_p, log_q = [MASK] * len(text), torch.zeros(()).double(), torch.zeros(()).double()
        scores = net.scores(laid(net, 1), torch.tensor([text]))[0]
        for at in order:
            left = [place for place in range(len(text)) if tokens[place] == MASK]
            log_probs, following = net.said(laid(net, 1), torch.tensor([tokens]))
            log_p = log_p + following[0, at] + log_probs[0, at, text[at]]
            log_q = log_q + scores[at] - scores[left].logsumexp(0)
            tokens[at] = text[at]
        joint.append(log_p)
        guess.append(log_q)
    return torch.stack(joint), torch.stack(guess)


@pytest.mark.parametrize("order", ["learned", "random"])
def test_the_bound_never_exceeds_the_enumerated_likelihood(order: str) -> None:
    net, total = network(order), 0.0
    for text in itertools.product((0, 3, 4, 5), repeat=3):  # the mask and the start are never said
        with torch.no_grad():
            joint, guess = paths(net, list(text))
        assert float(guess.exp().sum()) == pytest.approx(1.0)
        exact, below = float(joint.logsumexp(0)), float((guess.exp() * (joint - guess)).sum())
        assert below <= exact + 1e-9
        total += float(joint.logsumexp(0).exp())
    assert total == pytest.approx(1.0)  # the enumeration is a law


def test_the_estimate_is_unbiased_in_value_and_gradient() -> None:
    net, text, rows = network(), [3, 5, END], 2500
    joint, guess = paths(net, text)
    exact = (guess.exp() * (joint - guess)).sum()
    names = ("policy.weight", "guess.weight", "embed_tokens.weight")
    wanted = torch.autograd.grad(exact, [net.get_parameter(name) for name in names])
    torch.manual_seed(0)
    means, grads = list[float](), list[list[Tensor]]()
    for _ in range(12):
        loss = net.loss(laid(net, rows, torch.tensor([text[:2]]).expand(rows, -1)))
        means.append(-float(loss.mean().detach()))
        grads.append(list(torch.autograd.grad(-loss.mean(), [net.get_parameter(name) for name in names])))
    spread = torch.tensor(means).std() / 12**0.5
    assert sum(means) / 12 == pytest.approx(float(exact.detach()), abs=5 * float(spread))
    for at, one in enumerate(wanted):
        found = torch.stack([grad[at] for grad in grads])
        away = (found.mean(0) - one).abs() / (found.std(0) / 12**0.5 + 1e-9)
        assert float(away.max()) < 8 and float(found.mean(0).abs().max()) > 1e-3


def test_the_parts_of_one_order_sum_to_its_whole() -> None:
    net, text = network(), torch.tensor([[3, 5, END]])
    net.requires_grad_(False)
    scores, orders = net.scores(laid(net, 1), text), list(itertools.permutations(range(3)))
    found = torch.zeros(()).double()
    for order in orders:
        for known in range(3):
            part, chance = part_of_bound(net, laid(net, 1), text, scores, torch.tensor([order]), torch.tensor([known]))
            # Orders that begin alike have the same part: each is weighed by its share of the guess.
            rest = [place for place in range(3) if place not in order[:known]]
            share = 1.0
            for at in range(known, 3):
                share *= float((scores[0, order[at]] - scores[0, rest].logsumexp(0)).exp())
                rest.remove(order[at])
            found = found + chance.exp()[0] * share * part[0] / 3
    joint, guess = paths(net, [3, 5, END])
    assert float(found.detach()) == pytest.approx(float((guess.exp() * (joint - guess)).sum().detach()))


def test_orders_are_drawn_by_their_scores() -> None:
    torch.manual_seed(0)
    scores = torch.tensor([0.7, -0.2, 1.1], dtype=torch.float64)
    counts = Counter(map(tuple, order_of(scores.expand(20_000, -1)).tolist()))
    orders = list(itertools.permutations(range(3)))
    law = []
    for order in orders:
        left, chance = scores.exp(), 1.0
        for at in order:
            chance *= float(left[at] / left.sum())
            left = left.index_fill(0, torch.tensor(at), 0.0)
        law.append(chance)
    assert g_test(torch.tensor([counts[order] for order in orders]), torch.tensor(law)) > 1e-3
    assert chance_of(scores, torch.tensor([True, False, True]))[1] == float("-inf")


def test_texts_follow_the_enumerated_law() -> None:
    net = network(length=2)
    rows = [Row([2], 1, row_key(4, at), 2, (), source=[3, 4, 5, 0]) for at in range(3000)]
    run = make_run(LearnedOrder(), Sampling(temperature=1.0), target=NarModel(net))
    drive(run, rows)
    texts = [text for text in itertools.product((0, 3, 4, 5), repeat=2)]
    law = torch.stack([paths(net, list(text))[0].logsumexp(0).exp().detach() for text in texts])
    # A text ends with its first end, whatever the places behind it say.
    cells: dict[tuple[int, ...], float] = {}
    for text, chance in zip(texts, law.tolist(), strict=True):
        seen = (0, 0) if text[0] == END else text
        cells[seen] = cells.get(seen, 0.0) + chance
    names = list(cells)
    counts = Counter(tuple(row.written) for row in rows)
    assert set(counts) <= set(names)
    assert g_test(torch.tensor([counts[name] for name in names]), torch.tensor(list(cells.values()))) > 1e-3


@pytest.mark.parametrize("order", ["model", "random", "left"])
def test_a_row_is_as_it_is_alone_and_calls_are_places(order: str) -> None:
    net, method = network(length=6, vocab=12), LearnedOrder(order=order)

    def texts(keys: list[int]) -> tuple[list[list[int]], int]:
        rows = [Row([2], 1, row_key(2, key), 6, (), source=[3 + key, 4, 0]) for key in keys]
        run = make_run(method, Sampling(temperature=1.0), target=NarModel(net))
        drive(run, rows)
        return [row.written for row in rows], run.counters["target"].nfe

    together, calls = texts([0, 1, 2])
    assert [texts([key])[0][0] for key in range(3)] == together and 6 <= calls <= 9


def learned_bound(order: str) -> float:
    """Train on chains in which each symbol decides the next, but not the one before; return the bound in nats."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 16, "heads": 2, "ffn": 32, "encoder_layers": 1, "decoder_layers": 1}
    config = OrderedConfig(vocab_size=11, length=10, order=order, max_source=8, max_positions=12, dropout=0.0, **sizes)
    net = Ordered(config).train()
    follows = torch.randint(0, 8, (9, 8), generator=torch.Generator().manual_seed(5))

    def chains(count: int) -> Pass:
        places = [torch.randint(0, 8, (count,))]
        for at in range(8):
            places.append(follows[at][places[-1]])
        return laid(net, count, torch.stack(places, 1) + 3)

    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(250):
        optimiser.zero_grad()
        net.loss(chains(64)).mean().backward()
        optimiser.step()
    torch.manual_seed(1)
    return float(bound(net.eval(), chains(1000), 8).mean())


def test_a_learned_order_beats_a_random_one() -> None:
    learned, uniform = learned_bound("learned"), learned_bound("random")
    assert uniform + 0.05 < learned < -math.log(8)  # no bound exceeds what the first symbol costs


def test_orders_that_there_are_not_are_refused() -> None:
    with pytest.raises(ConfigError, match="no 'sorted' order"):
        network("sorted")
    with pytest.raises(ConfigError, match="order"):
        LearnedOrder(order="sorted")
    with pytest.raises(ConfigError, match="do not fit into 3 places"):
        net = network()
        net.loss(laid(net, 1, torch.tensor([[3, 4, 5]])))


def test_the_atoms_of_a_molecule() -> None:
    assert atoms("CC1CNC(=O)C1(C)C") == "CCCCCCCNO"
