"""Texts that grow around given words: what is given stays, whatever a network says."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from outpace.api.engine import LanguageModel
from outpace.errors import CapabilityError, ConfigError
from outpace.models.nar.files import find_kind
from outpace.models.nar.insertion import InsertionLm
from outpace.models.nar.model import NarModel
from outpace.models.nar.sketch import BAR, DOUBLE_BAR, Sketch, phrases_of
from outpace.models.nar.sketched import Sketched

KINDS = {"insertion": "insertion", "insertion-lm": "insertion-lm", "levenshtein": "levenshtein"}
VOCAB = 40


def network(kind: str, seed: int = 0, **more: Any) -> Sketched:
    """Return a random network that says much: large weights make wild laws."""
    torch.manual_seed(seed)
    sizes = {"width": 16, "heads": 2, "ffn": 16, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}
    found = find_kind(kind)
    net = found(found.Config(vocab_size=VOCAB, max_source=64, max_positions=64, **sizes, **more)).double().eval()
    assert isinstance(net, Sketched)
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(1.0 + 2.0 * torch.rand(()))
        if isinstance(net, InsertionLm):
            net.done.weight.mul_(0.3)  # so that it seldom stops at once
            net.done.bias.sub_(2.0)
    net.starts[30:], net.joins[30:] = False, True  # pieces of words
    return net


def model(net: Sketched) -> LanguageModel:
    return LanguageModel(NarModel(net), None, end_tokens=(0,))


def source(draw: random.Random) -> list[int]:
    """Return words or phrases between bars, an end behind them."""
    words = [draw.randrange(5, VOCAB) for _ in range(draw.randint(1, 8))]
    if draw.random() < 0.5:
        words = [token for word in words for token in (word, *([BAR] if draw.random() < 0.5 else []))]
    return [*words, 0]


def holds(text: Sequence[int], phrases: Sequence[Sequence[int]]) -> bool:
    """Return whether a text holds phrases, in order, each in one piece and its last word whole; by trying every place.

    A phrase that begins with a piece of a word may go on with the one before it.
    """
    if not phrases:
        return True
    first, size = list(phrases[0]), len(phrases[0])
    for at in range(len(text) - size + 1):
        behind, following = list(text[at + size :]), [phrase[0] for phrase in phrases[1:2]]
        is_whole = not behind or behind[0] < 30 or behind[:1] == following
        if list(text[at : at + size]) == first and is_whole and holds(behind, phrases[1:]):
            return True
    return False


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_what_is_given_stays_whatever_the_network_says(kind: str, seed: int) -> None:
    net, draw = network(kind, seed), random.Random(seed)
    sources = [source(draw) for _ in range(6)]
    most = draw.choice([10, 20, 40])
    settings: dict[str, Any] = {"temperature": draw.choice([0.0, 1.0, 50.0]), "seed": seed}
    results = model(net).generate(sources, method=KINDS[kind], max_tokens=most, **settings)
    inserted = 0
    for given, result in zip(sources, results, strict=True):
        phrases, _ = phrases_of(given, net.starts.tolist())
        text = [token for token in result.tokens if token != 0]
        assert len(text) <= most and holds(text, phrases)
        inserted += len(text) - sum(map(len, phrases))
    assert inserted > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_is_itself_in_a_ragged_batch(kind: str) -> None:
    net, draw = network(kind, 3), random.Random(3)
    sources = [source(draw) for _ in range(5)]
    lm = model(net)
    together = lm.generate(sources, method=KINDS[kind], max_tokens=24)
    alone = [lm.generate(one, method=KINDS[kind], max_tokens=24) for one in sources]
    assert [one.tokens for one in together] == [one.tokens for one in alone]


def test_sources_tell_words_from_phrases() -> None:
    starts = [True] * 30 + [False] * 10
    assert phrases_of([5, 6, 31, 32, 7, 0], starts) == ([[5], [6, 31, 32], [7]], False)
    assert phrases_of([5, 6, BAR, 7, 31, 8, 0], starts) == ([[5, 6], [7, 31, 8]], False)
    assert phrases_of([5, 6, BAR, 0], starts) == ([[5, 6]], False)
    assert phrases_of([9, 9, DOUBLE_BAR, 5, 6, 0], starts) == ([[5], [6]], True)
    assert phrases_of([9, 9, DOUBLE_BAR, 0], starts) == ([], True)


def test_a_sketch_has_no_way_to_lose_what_is_given() -> None:
    sketch = Sketch.of([[5, 6], [7]])
    assert sketch.is_open == [True, False, True, True]
    for change in (lambda: sketch.insert(1, [9]), lambda: sketch.delete(0)):
        with pytest.raises(AssertionError):
            change()
    sketch.insert(2, [8, 9])
    sketch.delete(3)
    assert sketch.tokens == [5, 6, 8, 7] and sketch.is_given == [True, True, False, True]


class _Filling(Sketched):
    """Says the next token of a known text in the middle of each slot: as good as an insertion network can be."""

    kind = "insertion"
    extra_symbols = 1

    def finish(self, run: Any) -> list[Tensor]:
        tokens = run.extra["tokens"]
        found = torch.full((*tokens.shape, VOCAB + 1), -20.0)
        for row, places in enumerate(tokens.tolist()):
            for slot, (a, b) in enumerate(itertools.pairwise(places)):
                first, last = (4 if a == 2 else a) + 1, (VOCAB if b == 0 else b) - 1
                found[row, slot, VOCAB if first > last else (first + last) // 2] = 0.0
        return [found, *self.kept(run)]

    def nll(self, outputs: Any, run: Any) -> Tensor:
        raise AssertionError("It learns nothing.")

    aligned = nll

    def trained(self, run: Any) -> list[Sketch]:
        raise AssertionError("It learns nothing.")

    def laws(self, outputs: Sequence[Tensor], is_place: Tensor) -> list[Tensor]:
        return [outputs[0].new_zeros(0, VOCAB) for _ in is_place]


def test_rounds_are_the_logarithm_of_the_length() -> None:
    net = _Filling(find_kind("insertion").Config(vocab_size=VOCAB, width=16, heads=2, ffn=16, max_positions=64))
    for given, rounds in (([20], 5), ([6, 10, 20, 30], 4), (list(range(5, VOCAB, 2)), 1)):
        result = model(net).generate([*given, 0], method="insertion", max_tokens=60)
        assert result.tokens == [*range(5, VOCAB), 0]
        assert result.usage.target_nfe == rounds + 1, given  # in the last one nothing is said


@pytest.mark.parametrize("kind", KINDS)
def test_contradictions_are_refused_in_a_sentence(kind: str) -> None:
    lm, method = model(network(kind)), KINDS[kind]
    cases: list[tuple[list[int], dict[str, Any], type[Exception], str]] = [
        ([5, 6, 0], {"bad_words": [[6]]}, ConfigError, "A word is both given and banned."),
        ([5, 6, BAR, 0], {"bad_words": [[5, 6]]}, ConfigError, "A word is both given and banned."),
        ([5, 6, 7, 8, 0], {"max_tokens": 3}, ConfigError, "4 tokens are given, but the text may have 3."),
        ([0], {}, ConfigError, "No word is given."),
        ([BAR, BAR, 0], {}, ConfigError, "No word is given."),
        ([5] * 63 + [0], {}, ConfigError, "63 tokens are given, but the text may have 62."),
        ([5, 0], {"no_repeat_ngram_size": 2}, CapabilityError, "no_repeat_ngram_size could forbid a given word"),
    ]
    for given, settings, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            lm.generate(given, method=method, **settings)
        assert getattr(caught.value, "hint", "")
    name = "steps" if kind == "insertion-lm" else "rounds"
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        lm.generate([5, 0], method=method, options={name: 0})


@pytest.mark.parametrize("kind", KINDS)
def test_banned_words_do_not_come(kind: str) -> None:
    lm = model(network(kind, 1))
    free = lm.generate([5, 6, 0], method=KINDS[kind], max_tokens=30).tokens
    words = {token for token in free if token not in (0, 5, 6)}
    assert words
    bound = lm.generate([5, 6, 0], method=KINDS[kind], max_tokens=30, bad_words=[[word] for word in words])
    assert not words & set(bound.tokens) and bound.tokens[:-1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_with_nothing_given_may_be_asked_for(kind: str) -> None:
    result = model(network(kind, 2)).generate([5, 6, DOUBLE_BAR, 0], method=KINDS[kind], max_tokens=20)
    assert 0 < len(result.tokens) <= 20


def test_laws_over_slot_and_token_sum_to_one() -> None:
    net = network("insertion-lm", 4)
    run = NarModel(net).begin([[5, 6, 31, 7, 0], [8, 0]])
    found = net.finish(run)[0].detach()
    assert torch.allclose(found.exp().sum((1, 2)), torch.ones(2, dtype=torch.float64))
    closed = ~run.extra["is_open"]
    assert float(found.exp()[closed].sum()) == 0.0  # within a word, and on padding


@pytest.mark.parametrize("scheme", ["progressive", "entities", "spread", "uniform"])
def test_losses_are_those_of_the_labels(scheme: str) -> None:
    net = network("insertion", 5, scheme=scheme).train()
    sources = torch.tensor([[7, 9, 0, 0], [5, 31, 8, 0]])
    is_real = torch.tensor([[True, True, True, False], [True] * 4])
    targets, lengths = torch.tensor([[6, 7, 8, 9, 10, 0], [5, 31, 6, 8, 7, 11]]), torch.tensor([5, 6])
    run = net.begin(sources, is_real, targets, lengths)
    outputs = net.finish(run)
    wanted = torch.zeros(2, dtype=torch.float64)
    for row, slot, token, weight in run.extra["labels"]:
        wanted[row] -= weight * outputs[0][row, slot, token]
    assert torch.allclose(net.nll(outputs, run), wanted)
    for row, sketch in enumerate(net.resume(outputs, run.is_place)[1]):
        rest = iter(targets[row, : int(lengths[row])].tolist())
        assert all(token in rest for token in sketch.tokens)
        if scheme != "progressive":
            given = [token for token in sources[row].tolist() if token]
            assert [token for token, known in zip(sketch.tokens, sketch.is_given, strict=True) if known] == given
            assert not any(
                slot == 1 for at, slot, *_ in run.extra["labels"] if at == 1 and sketch.tokens[:2] == [5, 31]
            )
    net.nll(outputs, run).sum().backward()


def test_a_piece_of_a_missing_word_may_be_taught_behind_a_given_one() -> None:
    net = network("insertion-lm", 5).train()
    sources, targets = torch.tensor([[7, 9, 0]]), torch.tensor([[7, 31, 8, 33, 9]])
    for _ in range(8):  # whichever tokens the state keeps
        run = net.begin(sources, torch.ones_like(sources, dtype=torch.bool), targets, torch.tensor([5]))
        assert 0 <= float(net.nll(net.finish(run), run).detach()) < 1e3


@pytest.mark.parametrize("kind", ["insertion", "levenshtein"])
@pytest.mark.parametrize("plan", ["source", "graph"])
def test_what_a_planner_picks_stands_in_the_text(kind: str, plan: str) -> None:
    net = network(kind, 6, plan=plan, neighbours=4 * (plan == "graph"))
    prepared(net)
    sources = [[token, token + 7, token + 3, 0] for token in (5, 11, 20)]
    run = NarModel(net).begin(sources)
    assert net.planner is not None
    planned = [[token for phrase in row for token in phrase] for row in net.planner.plan(net, run)]
    assert any(planned)
    results = model(net).generate(sources, method=KINDS[kind], max_tokens=40)
    for read, tokens, result in zip(sources, planned, results, strict=True):
        rest = iter(result.tokens)
        assert all(token in rest for token in tokens)
        assert set(tokens) <= set(read if plan == "source" else map(_mate, read[:-1]))
    bare = model(net).generate([[*sources[0][:-1], DOUBLE_BAR, 0]], method=KINDS[kind], max_tokens=40)[0]
    assert bare.tokens != results[0].tokens


def _mate(token: int) -> int:
    return 5 + (token - 5 + 17) % 35


def prepared(net: Sketched) -> None:
    """Tell a network of texts in which each token is answered by its mate."""
    read = [[5 + at % 35] for at in range(1400)]
    said = [[_mate(one), 5 + at % 2] for at, (one,) in enumerate(read)]
    net.prepare(read, said, [True] * VOCAB)


def test_edges_of_the_graph_are_what_goes_together() -> None:
    net = network("insertion", plan="graph", neighbours=2)
    prepared(net)
    assert net.planner is not None
    found = net.planner.graph[5:, 0].tolist()
    # Two tokens come in half of all texts: they are no concepts.
    assert found == [-1 if _mate(token) in (5, 6) else _mate(token) for token in range(5, VOCAB)]
    weights = net.planner.weights[5:, 0][torch.tensor(found) > 0]
    assert torch.allclose(weights, torch.tensor(35.0).log().double())  # 40 of 1,400 hold one, 40 the other, 40 both


def test_the_loss_of_a_plan_is_that_of_each_pick() -> None:
    net = network("insertion", 7, plan="source", longest_plan=3).train()
    sources, targets = torch.tensor([[7, 8, 9, 10, 0]]), torch.tensor([[9, 6, 7, 11, 10]])
    run = net.begin(sources, torch.ones(1, 5, dtype=torch.bool), targets, torch.tensor([5]))
    planner, states = net.planner, run.states
    assert planner is not None
    state, wanted = torch.tanh(planner.begin(states.mean(1))), torch.zeros((), dtype=torch.float64)
    free = [0, 1, 2, 3, 4]  # the end is no word, so that its place stands for stopping
    for pick in (2, 0, 3, 4):
        keys = torch.stack([*planner.key(states[0, :4]), planner.stop])
        scores = (keys @ planner.query(state)[0]) / 4.0
        wanted = wanted - (scores[pick] - scores[free].logsumexp(0))
        free.remove(pick)
        state = planner.cell(states[:, min(pick, 3)], state)
    assert torch.allclose(run.extra["plan_loss"][0], wanted)
    assert {9, 7, 10} <= set(targets[0].tolist()) and run.extra["labels"]
