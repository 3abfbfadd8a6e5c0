"""Cascaded search: marginals and best paths equal brute force, in steps that grow with the logarithm of the length."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.methods.whole.cascade import Cascade
from outpace.models.nar.cascade import Bounds, best_states, cascade, log_sum, marginals, max_plus
from outpace.models.nar.markov import Markov, MarkovConfig
from outpace.models.nar.model import NarModel
from outpace.run.row import Row
from outpace.sampling import row_key
from outpace.testing.world import drive, make_run
from outpace.train.nar.barriers import Barriers
from outpace.train.nar.network import TrainedNar
from outpace.train.pairs import make_batch

START, END, VOCAB = 2, 0, 7
FEW = 5  # tokens of the texts that are all tried
SOURCES = [[5, 6, 4, 3, 0], [4, 0], [4, 4, 5, 0]]


def chain(rows: int, length: int, size: int, seed: int = 0) -> Tensor:
    """Random edges, some of them missing."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randn(rows, length, size, size, generator=generator, dtype=torch.float64)
    return edges.masked_fill(torch.rand(edges.shape, generator=generator) < 0.15, float("-inf"))


def paths(edges: Tensor) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every path of one chain and its score."""
    for states in itertools.product(range(edges.shape[1]), repeat=len(edges)):
        steps = zip((0, *states[:-1]), states, strict=True)
        yield states, sum(float(edges[at, came, went]) for at, (came, went) in enumerate(steps))


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_marginals_and_best_paths_are_those_of_all_paths(length: int) -> None:
    edges = chain(2, length, 3)
    best, summed = marginals(edges)[0], marginals(edges, log_sum)[0]
    states, scores, _ = best_states(edges)
    for row in range(2):
        every = list(paths(edges[row]))
        for at, came, went in itertools.product(range(length), range(3), range(3)):
            through = [score for taken, score in every if ((0, *taken)[at], taken[at]) == (came, went)]
            wanted = max(through, default=-math.inf), torch.tensor(through, dtype=torch.float64).logsumexp(0)
            assert float(best[row, at, came, went]) == pytest.approx(wanted[0])
            assert float(summed[row, at, came, went]) == pytest.approx(float(wanted[1]))
        path, score = max(every, key=lambda pair: pair[1])
        assert tuple(states[row].tolist()) == path
        assert float(scores[row]) == pytest.approx(score)


def test_steps_grow_with_the_logarithm_of_the_length() -> None:
    steps = {length: marginals(chain(1, length, 2), max_plus)[1] for length in (8, 64, 512)}
    assert steps == {8: 6, 64: 12, 512: 18}
    assert [best_states(chain(1, length, 2))[2] for length in (8, 64, 512)] == [6, 12, 18]


def law(context: Sequence[int], at: int, size: int = FEW) -> Tensor:
    """A made-up law behind a context at a place."""
    generator = torch.Generator().manual_seed(hash((*context, at, size)) % 2**31)
    return (2 * torch.randn(size, generator=generator, dtype=torch.float64)).log_softmax(-1)


def score(contexts: Tensor, at: Tensor) -> Tensor:
    rows = zip(contexts.flatten(0, 1).tolist(), at.flatten().tolist(), strict=True)
    return torch.stack([law(*row) for row in rows]).unflatten(0, at.shape)


def exhaustive(least: int, most: int, order: int) -> tuple[list[int], float]:
    """The best of all texts, each token scored behind as many before it as the order says."""
    found = list[tuple[list[int], float]]()
    for length in range(least, most + 1):
        for text in itertools.product([token for token in range(FEW) if token not in (START, END)], repeat=length):
            said = [START] * order + list(text)
            if length < most:
                said.append(END)
            terms = [float(law(said[at : at + order], at)[said[at + order]]) for at in range(len(said) - order)]
            if length == most:  # the end is forced, but costs what it costs
                terms.append(float(law(said[most : most + order], most)[END]))
            found.append((list(text), sum(terms)))
    return max(found, key=lambda pair: pair[1])


@pytest.mark.parametrize("order", [1, 2, 3])
def test_without_pruning_the_best_text_of_all_is_found(order: int) -> None:
    least, most = 2, 4
    bounds = Bounds(torch.tensor([least]), torch.tensor([most]), START, END)
    at = torch.arange(most + 1)[None]
    found = cascade(score(at[:, :, None][:, :, :0], at), score, bounds, 64, order)
    text, wanted = exhaustive(least, most, order)
    tokens = found.tokens[0].tolist()
    assert tokens[: tokens.index(END)] == text
    assert float(found.scores[0]) == pytest.approx(wanted)
    assert found.passes == order


def test_pruning_keeps_texts_whole_and_takes_few_steps() -> None:
    counts = []
    for length in (7, 63):
        bounds = Bounds(torch.tensor([length - 2]), torch.tensor([length]), START, END)
        at = torch.arange(length + 1)[None]
        found = cascade(score(at[:, :, None][:, :, :0], at), score, bounds, 3, 2)
        tokens = found.tokens[0].tolist()
        assert length - 2 <= tokens.index(END) <= length
        assert set(tokens[tokens.index(END) :]) == {END}
        assert START not in tokens
        said = [START, START, *tokens[: tokens.index(END) + 1]]
        total = sum(float(law(said[i : i + 2], i)[said[i + 2]]) for i in range(len(said) - 2))
        assert float(found.scores[0]) == pytest.approx(total)
        counts.append(found.steps)
    assert counts == [12, 24]  # nine times as long, twice the steps


def network(order: int = 2) -> Markov:
    torch.manual_seed(1)
    sizes = {"width": 16, "heads": 2, "ffn": 24, "encoder_layers": 1, "decoder_layers": 2, "reach": 4}
    return Markov(MarkovConfig(vocab_size=VOCAB, max_source=8, max_positions=16, order=order, dropout=0.0, **sizes))  # type: ignore[arg-type]


def written(net: Markov, method: Cascade, sources: list[list[int]] = SOURCES) -> list[list[int]]:
    rows = [Row([START], 1, row_key(1, at), 40, (END,), source=source) for at, source in enumerate(sources)]
    drive(make_run(method, target=NarModel(net)), rows)
    return [row.written for row in rows]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_no_token_sees_beyond_a_barrier_or_its_order(order: int) -> None:
    """Laws of training with barriers, and of a target without, are those of contexts taken one by one."""
    net = network(order).double()
    batch = make_batch(SOURCES, [[5, 6, 4, 5, 3, 0], [3, 3, 0], [6, 0]])  # type: ignore[arg-type]
    for is_training in (True, False):
        net.train(is_training)
        run = TrainedNar(net.train(is_training)).begin(batch)
        net.train(is_training)
        laws = net.finish(run)[0]
        for row, lasts in enumerate(run.extra["parts"].tolist()):
            said = run.extra["said"][row].tolist()
            for at in range(int(run.is_place[row].sum())):
                seen = sum(part == lasts[at] for part in lasts[:at]) if is_training else min(at, order)
                context = torch.tensor([[said[at - seen : at]]]).long().view(1, 1, seen)
                alone = NarModel(net).begin([SOURCES[row]])
                net.train(is_training)
                torch.testing.assert_close(laws[row, at], net.given(alone, context, torch.tensor([[at]]))[0, 0])


def test_a_row_is_written_as_it_is_alone() -> None:
    net = network().double().eval()
    together = written(net, Cascade(top=4))
    assert together == [written(net, Cascade(top=4), [source])[0] for source in SOURCES]


def test_what_is_learned_is_written() -> None:
    net = network()
    network_, targets = TrainedNar(net), [[5, 3, 5, 4, 0], [6, 4, 3, 0], [4, 5, 4, 3, 5, 0]]
    batch = make_batch(SOURCES, targets)  # type: ignore[arg-type]
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-2)
    for _ in range(70):
        optimiser.zero_grad()
        Barriers()(network_, batch).backward()
        optimiser.step()
    assert written(net.double().eval(), Cascade(top=4)) == targets


def test_orders_that_the_model_lacks_are_refused() -> None:
    with pytest.raises(ConfigError, match="looks back 2 tokens, not 3"):
        written(network().double().eval(), Cascade(order=3))
