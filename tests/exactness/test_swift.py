"""SWIFT: scores and bounds by hand, a search that finds the harmless layers, and drafts that get better with it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from outpace.api.engine import load
from outpace.bench.inflate import inflate
from outpace.draft.layers import LayerMemory, LayerSearch, _candidates, match_rates, spread_layers, upper_bounds
from outpace.errors import CapabilityError, ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.speculative.swift import Swift
from outpace.run.loop import Run
from outpace.sampling import Sampling
from outpace.testing import ToyModel, check_method
from outpace.testing.certify import PROMPTS
from outpace.testing.world import drive, make_rows, make_run, write
from outpace.types import Counter
from outpace.zoo import path


def with_idle(layers: int, idle: tuple[int, ...]) -> ToyModel:
    """A toy model some of whose layers add nothing."""
    model = ToyModel(num_layers=layers, seed=4)
    model.weights[1][list(idle)] = 0
    return model


def test_upper_bounds_by_hand() -> None:
    # Two sets of one layer, at distance sqrt(2); scores 0.2 and 0.6 are -1 and 1 in units of their deviation.
    points, scores = torch.eye(2).double(), torch.tensor([0.2, 0.6]).double()
    far = math.sqrt(10)
    k, noise = (1 + far + far**2 / 3) * math.exp(-far), 0.01
    mean = (1 - k) / (1 + noise - k)
    variance = 1 - ((1 + noise) * (1 + k**2) - 2 * k**2) / ((1 + noise) ** 2 - k**2)
    found = upper_bounds(points, scores, points)
    assert float(found[1]) == pytest.approx(mean + 2.5 * math.sqrt(variance))
    assert float(found[0]) == pytest.approx(-mean + 2.5 * math.sqrt(variance))
    far_off = upper_bounds(points * 100, scores, torch.zeros(1, 2).double() - 900)
    assert float(far_off) == pytest.approx(2.5, abs=1e-3)  # nothing is known there


def test_bayes_prefers_what_resembles_the_good() -> None:
    search = LayerSearch(10, 2)
    for skip in itertools.combinations(range(1, 9), 2):
        if skip not in ((3, 6), (1, 2), (1, 6)):
            search.note(skip, 0.9 if 6 in skip else 0.1)
    assert search.suggest(is_bayes=True) in ((3, 6), (1, 6))


def test_every_set_is_tried_once_and_the_best_stays() -> None:
    search = LayerSearch(7, 2)
    assert search.suggest(False) == spread_layers(7, 2) == search.best
    for number in range(math.comb(5, 2)):
        assert not search.is_exhausted
        skip = search.suggest(is_bayes=number % 3 == 2)
        assert skip not in search.tried and len(skip) == 2 and 0 < min(skip) and max(skip) < 6
        search.note(skip, sum(skip) / 10)
    assert search.is_exhausted and search.best == (4, 5) and search.best_score == 0.9
    other = LayerSearch(7, 2)
    assert other.suggest(False) == spread_layers(7, 2)
    copy = other.copy()
    copy.note((1, 2), 1.0)
    assert not other.tried


def test_many_layers_are_drawn_not_listed() -> None:
    search = LayerSearch(40, 17)  # half a billion sets
    seen = set()
    for number in range(30):
        skip = search.suggest(is_bayes=number % 10 == 9)
        seen.add(skip)
        search.note(skip, 0.5)
    assert len(seen) == 30 and all(len(skip) == 17 and 0 < skip[0] and skip[-1] < 39 for skip in seen)


def test_match_rates_are_counted_from_the_text() -> None:
    """With the whole text in view, a plain forward with the layers left out tells the same."""
    target, skip = with_idle(5, (2,)), (1, 3)
    run = make_run(Autoregressive(), target=target)
    rows = make_rows(max_tokens=20)
    drive(run, rows, steps=12)
    view = run.batch.view(0, None)
    before = [buffer.clone() for buffer in view.cache.buffers]
    lengths, counter = list(view.cache.lengths), Counter()
    rates = match_rates(target, counter, view, skip, 1000)
    for row, rate in zip(rows, rates, strict=True):
        text = torch.tensor([row.tokens])
        position = torch.arange(text.shape[1]).unsqueeze(0)
        logits = target.score(text, position, None, target.new_cache(1, 64), skip=skip).logits
        hits = (logits[0, :-1].argmax(-1) == text[0, 1:]).sum()
        assert rate == pytest.approx(float(hits) / (text.shape[1] - 1))
    # The target's own cache is as it was, and the work is counted as drafting.
    assert view.cache.lengths == lengths and counter.nfe == 1
    for old, new in zip(before, view.cache.buffers, strict=True):
        for row, length in enumerate(lengths):
            assert torch.equal(old[row, :length], new[row, :length])
    assert match_rates(target, Counter(), view, (2,), 8) == [1.0] * len(rows)  # it adds nothing; all written greedily


def test_candidates_follow_confidence() -> None:
    """The numbers of the authors' code: 1, 3, 5 and 10 candidates as the drafter gets less sure."""
    assert [_candidates(sure, 10) for sure in (0.96, 0.9, 0.6, 0.3, 0.0)] == [1, 3, 5, 10, 10]
    assert [_candidates(sure, 1) for sure in (0.96, 0.3)] == [1, 1]


@pytest.mark.parametrize("settings", [Sampling(temperature=0.8), Sampling(temperature=0.9, top_k=6)], ids=str)
def test_the_harmless_layers_are_found(settings: Sampling) -> None:
    target = with_idle(7, (2, 3, 5))
    method = Swift(fraction=0.6, context=8, min_confidence=0.0, draft_len=4)
    rows = make_rows(max_tokens=60)
    run = make_run(method, settings, target=target, capacity=128)
    drive(run, rows, steps=15)
    early = [(row.usage.num_accepted, row.usage.num_proposed) for row in rows]
    assert all(accepted < 0.7 * proposed for accepted, proposed in early)
    searches = [search.copy() for search in run.batch.state.searches]
    drive(run)
    assert {search.best for search in searches} == {(2, 3, 5)} and {search.best_score for search in searches} == {1.0}
    late = [row.usage.num_accepted - some[0] for row, some in zip(rows, early, strict=True)]
    tried = [row.usage.num_proposed - some[1] for row, some in zip(rows, early, strict=True)]
    assert late == tried and min(late) > 0  # what is drafted now is what the whole target writes
    plain = write(Autoregressive(), settings, make_rows(max_tokens=60), target=target, capacity=128)
    assert [row.written for row in rows] == [row.written for row in plain]


def test_a_memory_goes_on_where_the_last_run_stopped() -> None:
    target, memory = with_idle(7, (2, 3, 5)), LayerMemory()
    method = Swift(fraction=0.6, context=8, min_confidence=0.0, draft_len=4)
    for number in range(2):
        run = Run(target, method, Sampling(), capacity=128, memory=memory)
        rows = make_rows(max_tokens=40)
        drive(run, rows)
        assert memory.search is not None and memory.search.best == (2, 3, 5)
        if number:
            assert all(row.usage.num_accepted == row.usage.num_proposed for row in rows)
    assert memory.begin(9, 2).tried == {}  # another model begins anew


def test_the_search_ends() -> None:
    target = with_idle(6, ())
    for method, limit in (
        (Swift(fraction=0.5, context=4, search_steps=3), 3),
        (Swift(fraction=0.5, context=4, max_score=0.0), 1),
        (Swift(fraction=0.5, context=4), math.comb(4, 2)),
    ):
        memory = LayerMemory()
        drive(Run(target, method, Sampling(), capacity=96, memory=memory), make_rows(max_tokens=40)[:1])
        assert memory.search is not None and len(memory.search.tried) == limit


def test_drafts_get_better_on_an_inflated_model(tmp_path: Path) -> None:
    """Some layers of an inflated model add nothing: once they are found, every draft is accepted."""
    model = load(inflate(path("stories"), tmp_path / "larger", 9_000_000, width=1), dtype="float32")
    method, memory = Swift(fraction=0.4, context=16), LayerMemory()
    plain = model.generate(PROMPTS[0], max_tokens=60, ignore_eos=True)
    first, *_, last = (
        model.generate(PROMPTS[0], method=method, max_tokens=60, ignore_eos=True, memory=memory) for _ in range(2)
    )
    assert first.tokens == last.tokens == plain.tokens
    assert memory.search is not None and memory.search.best_score == 1.0
    assert first.usage.num_accepted < first.usage.num_proposed
    assert last.usage.num_accepted == last.usage.num_proposed > 30


@pytest.mark.parametrize("method", [Swift(fraction=0.9, context=3), Swift(branches=3, context=4)], ids=str)
def test_contract(method: Swift) -> None:
    check_method(method, every=3)


def test_a_tree_accepts_more_than_its_chain() -> None:
    target = with_idle(6, (3,))
    kept = [
        sum(row.usage.num_accepted for row in write(method, Sampling(), target=target))
        for method in (Swift(min_confidence=0.0, draft_len=4), Swift(min_confidence=0.0, draft_len=4, branches=4))
    ]
    assert kept[1] > kept[0]


def test_settings() -> None:
    for settings in ({"fraction": 1.0}, {"draft_len": 0}, {"context": 0}, {"branches": 0}):
        with pytest.raises(ConfigError):
            Swift(**settings)
    with pytest.raises(CapabilityError, match="none to leave out"):
        make_run(Swift(), target=ToyModel(num_layers=2)).join(make_rows())
