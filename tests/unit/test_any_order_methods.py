"""The methods on a network over shuffled places: against sequential sampling by hand, around gaps, and from files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import outpace
from outpace.errors import CapabilityError, ConfigError, ModelError
from outpace.methods.base import Method
from outpace.methods.misfit import check_fit
from outpace.methods.parallel.any_subset import AnySubset
from outpace.methods.parallel.ordered import OrderedMethod
from outpace.methods.parallel.sigma_gpt import SigmaGpt
from outpace.methods.registry import load_method
from outpace.models.any_order import AnyOrderConfig, AnyOrderNet, config_of
from outpace.models.any_order_model import AnyOrderModel
from outpace.run.row import Row
from outpace.sampling import Sampler, Sampling, Stream, row_key, uniform
from outpace.testing.gtest import g_test
from outpace.testing.world import drive, make_run, toy_any_order
from outpace.train.any_order import random_orders
from outpace.train.data import train_tokenizer
from outpace.types import Guarantee

WARM = Sampling(temperature=1.0)
REST = [-1, 4, -1, -1, 2, -1]


@pytest.fixture(scope="module")
def model() -> AnyOrderModel:
    return toy_any_order()


def write(method: Method, target: AnyOrderModel, rows: list[Row], settings: Sampling = WARM) -> int:
    run = make_run(method, settings, target=target, record=("log_probs",))
    drive(run, rows)
    return run.counters["target"].nfe


def row(number: int, rest: list[int], prompt: tuple[int, ...] = (1, 2)) -> Row:
    made = Row(list(prompt), len(prompt), row_key(3, number), len(rest))
    made.canvas = list(rest)
    return made


def one_by_one(net: AnyOrderNet, key: int, prompt: list[int], rest: list[int]) -> tuple[list[int], list[float]]:
    """Draw place after place, from whole forwards of the network and the noise that a burst of one has."""
    text, sampler = [*prompt, *rest], Sampler(WARM, [key])
    ranks = uniform(sampler.noise(Stream.ORDER, torch.zeros(1, dtype=torch.int64)), torch.arange(len(text)))[0]
    order = sorted(range(len(text)), key=lambda place: (text[place] < 0, float(ranks[place])))
    chances = [0.0] * len(text)
    for known in range(sum(token >= 0 for token in text), len(text)):
        place = torch.tensor([[order[known]]])
        law = net(torch.tensor([text]).clamp(min=0), torch.tensor([order]))[0, known]
        noise = sampler.noise(Stream.DRAFT, place, known)[0]
        token = int(sampler.draw(sampler.law(law[None]), noise)[0])
        text[order[known]], chances[order[known]] = token, float(law[token])
    return text[len(prompt) :], chances[len(prompt) :]


@pytest.mark.parametrize("method", [AnySubset(most=1), SigmaGpt(most=1)], ids=lambda method: method.name)
def test_a_burst_of_one_is_ordinary_sampling_in_the_order(model: AnyOrderModel, method: Method) -> None:
    rows = [row(0, REST), row(1, [-1] * 9, (5,)), row(2, [-1, -1], (3, 3, 3))]
    write(method, model, rows)
    for one in rows:
        text, chances = one_by_one(model.net, one.key, one.tokens[: one.num_prompt], one.canvas)
        assert one.written == text
        assert one.log_probs == pytest.approx(chances, abs=1e-9)


def bursts(net: AnyOrderNet, one: Row, orders: int) -> tuple[list[int], int]:
    """Write a row by bursts, a whole forward per place and per order; return it, and how many a method takes."""
    text, sampler, nfe = [*one.tokens[: one.num_prompt], *one.canvas], Sampler(WARM, [one.key]), 0
    ranks = uniform(sampler.noise(Stream.ORDER, torch.zeros(1, dtype=torch.int64)), torch.arange(len(text)))[0]
    order = sorted(range(len(text)), key=lambda place: (text[place] < 0, float(ranks[place])))
    known = sum(token >= 0 for token in text)
    while known < len(text):
        nfe, open_ones, given = nfe + 1, order[known:], torch.tensor([text]).clamp(min=0)
        noise = sampler.noise(Stream.DRAFT, torch.tensor([open_ones]), known)[0]
        laws, drawn = {}, {}
        for at, place in enumerate(open_ones):
            others = [other for other in open_ones if other != place]
            laws[place] = net(given, torch.tensor([[*order[:known], place, *others]]))[0, known]
            drawn[place] = int(sampler.draw(sampler.law(laws[place][None]), noise[at : at + 1])[0])
        text[open_ones[0]], known, left = drawn[open_ones[0]], known + 1, open_ones[1:]
        if not left:
            break
        nfe += 1
        accept = sampler.noise(Stream.ACCEPT, torch.tensor([left]), known - 1)
        chance = dict(zip(left, uniform(accept, torch.zeros(1, dtype=torch.int64))[0, :, 0].tolist(), strict=True))
        more = sampler.noise(Stream.ORDER, torch.zeros(1, dtype=torch.int64), known)
        shuffled = uniform(more, torch.arange((orders - 1) * len(left)))[0].view(orders - 1, len(left)).argsort(1)
        best: tuple[int, list[int]] = (-1, left)
        for way in [left, *([left[rank] for rank in row] for row in shuffled.tolist())]:
            filled = torch.tensor([[drawn.get(place, token) for place, token in enumerate(text)]])
            joint = net(filled, torch.tensor([[*order[:known], *way]]))[0, known:]
            ratios = [float((joint[at, drawn[p]] - laws[p][drawn[p]]).exp()) for at, p in enumerate(way)]
            kept = next((at for at, p in enumerate(way) if chance[p] >= ratios[at]), len(way))
            best = (kept, way) if kept > best[0] else best
        order = [*order[:known], *best[1]]
        for place in best[1][: best[0]]:
            text[place] = drawn[place]
        known += best[0]
    return text[one.num_prompt :], nfe


def test_of_several_orders_the_one_that_keeps_most_is_taken(model: AnyOrderModel) -> None:
    nfe = {}
    for orders in (1, 5):
        nfe[orders] = 0
        for number in range(3):
            one = row(number, [-1] * 9, (5,))
            count = write(SigmaGpt(orders=orders), model, [one])
            assert (one.written, count) == bursts(model.net, one, orders)
            nfe[orders] += count
    assert nfe[5] < nfe[1]


@pytest.mark.parametrize(
    "method", [AnySubset(), AnySubset(most=2, order="plain"), SigmaGpt(), SigmaGpt(orders=3)], ids=str
)
def test_given_pieces_stay_and_a_ragged_row_is_the_row_alone(model: AnyOrderModel, method: Method) -> None:
    rows = [row(0, REST), row(1, [-1] * 9, (5,)), row(2, [7, 8], (3, 3, 3))]
    write(method, model, rows)
    assert [rows[0].written[1], rows[0].written[4]] == [4, 2]
    assert rows[2].written == [7, 8]
    for number, together in enumerate(rows):
        alone = row(number, together.canvas, tuple(together.tokens[: together.num_prompt]))
        write(method, model, [alone])
        assert alone.written == together.written
        assert alone.log_probs == pytest.approx(together.log_probs, abs=1e-9)


def test_forwards_never_exceed_tokens(model: AnyOrderModel) -> None:
    for number, size in itertools.product(range(6), (1, 2, 3, 12)):
        assert write(AnySubset(), model, [row(number, [-1] * size)]) <= size


@pytest.mark.parametrize("method", [AnySubset(), SigmaGpt()], ids=lambda method: method.name)
def test_texts_follow_the_law_of_drawing_in_that_order(method: OrderedMethod) -> None:
    """A G-test on three letters and three places; bursts without a redraw fail it, so it can fail."""
    target, count = toy_any_order(3, 8), 2_000
    rows = [row(number, [-1] * 3, (1,)) for number in range(count)]
    write(type(method)(order="plain"), target, rows)
    texts = torch.tensor([one.written for one in rows])
    counts = (texts * torch.tensor([9, 3, 1])).sum(1).bincount(minlength=27)
    every = torch.tensor([(1, *text) for text in itertools.product(range(3), repeat=3)])
    laws = target.net(every, torch.arange(4).expand(27, -1))
    wanted = laws.gather(2, every.unsqueeze(2))[:, 1:, 0].sum(1).exp()
    chance = g_test(counts, wanted)
    assert chance > 1e-3 if method.redraws else chance < 1e-6


def test_promises() -> None:
    assert AnySubset().guarantee is Guarantee.DISTRIBUTION
    assert (SigmaGpt().guarantee, SigmaGpt(most=1).guarantee) == (Guarantee.APPROXIMATE, Guarantee.DISTRIBUTION)
    with pytest.raises(ConfigError, match="most"):
        SigmaGpt(most=-1)


def test_no_end_comes_between_given_pieces(model: AnyOrderModel) -> None:
    for number in range(5):
        one = row(number, [-1, -1, -1, 4])
        one.end_tokens = (0, 1, 2, 3, 5, 6, 7, 8)
        write(AnySubset(), model, [one])
        assert not set(one.written) & set(one.end_tokens)


def test_other_methods_refuse_the_network_and_it_refuses_settings_over_prefixes(model: AnyOrderModel) -> None:
    for name in ("autoregressive", "masked-diffusion", "one-pass", "draft-model"):
        with pytest.raises(CapabilityError, match=r"the model's is any-order"):
            check_fit(load_method(name)(), model.capabilities)
    with pytest.raises(ConfigError, match="any-subset writes out of order"):
        write(AnySubset(), model, [row(0, REST)], Sampling(repetition_penalty=1.5))
    with pytest.raises(CapabilityError, match="which place comes next"):
        model.score(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1), None, model.new_cache(1, 4))


def test_orders_of_a_batch_are_permutations_and_texts_longer_than_the_network_are_refused(model: AnyOrderModel) -> None:
    orders = random_orders(5, 7, 1)
    assert (orders.sort(1).values == torch.arange(7)).all()
    assert not torch.equal(orders, random_orders(5, 7, 2))
    with pytest.raises(ConfigError, match="65 places, but the network knows 64"):
        model.net(torch.zeros(1, 65, dtype=torch.int64), torch.arange(65)[None])


def test_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = AnyOrderNet(AnyOrderConfig(vocab=258, places=12, width=16))
    (tmp_path / "config.json").write_text(json.dumps(config_of(net)))
    train_tokenizer(["a story"], 258).save(str(tmp_path / "tokenizer.json"))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    lm = outpace.load(str(tmp_path))
    ours = lm.generate([1, 2], method="any-subset", max_tokens=6, temperature=1.0, seed=4)
    mine = Row([1, 2], 2, row_key(4), 6)
    mine.canvas = [-1] * 6
    write(AnySubset(), AnyOrderModel(net), [mine])
    assert ours.tokens == mine.written
    filled = lm.generate([1, 2], method="sigma-gpt", canvas=[-1, 5, -1], temperature=1.0)
    assert filled.tokens[1] == 5
    with pytest.raises(CapabilityError, match="any-order"):
        lm.generate([1, 2], method="autoregressive")
    (tmp_path / "config.json").write_text(json.dumps({**config_of(net), "width": 32}))
    with pytest.raises(ModelError, match="holds no whole any-order model"):
        outpace.load(str(tmp_path))
