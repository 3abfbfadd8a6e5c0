"""Trees drafted by a model: the best of all, the paper's greedy order, a given shape; scores are what they claim."""

from __future__ import annotations

import heapq
import itertools
import math

import pytest
import torch
from torch import Tensor

from outpace.draft.grow import draft_best, draft_shape
from outpace.draft.model import draft_chain, draft_tree
from outpace.draft.reading import Drafter, branch_scores, read_nodes
from outpace.run.tree import TokenTree, largest
from outpace.sampling import Sampler, Sampling, gumbel, row_key
from outpace.schedule.tree_size import RankTree
from outpace.testing.toy import ToyModel
from outpace.types import Counter, Outcome, Proposal, Stream, View

TEXTS = [[1, 2, 0, 2], [2], [0, 1, 1, 2, 0, 2, 1]]
SETTINGS = [Sampling(), Sampling(temperature=0.7), Sampling(temperature=1.2, top_k=2)]


def make_model(vocab: int = 3, context: int = 4096) -> ToyModel:
    return ToyModel(vocab, 2, seed=5, hidden=6, sharpness=1.5, max_positions=context)


def make_view(model: ToyModel, settings: Sampling, texts: list[list[int]] = TEXTS) -> View:
    sampler = Sampler(settings, [row_key(3, len(text)) for text in texts])
    return View(texts, [1] * len(texts), [50] * len(texts), 0, model.new_cache(len(texts), 64), sampler)


def next_scores(model: ToyModel, view: View, row: int, path: tuple[int, ...], spread: float) -> list[float]:
    """Log-probabilities after a path, from a whole forward without any cached entry."""
    text = torch.tensor([[*view.texts[row], *path]])
    place = torch.arange(text.shape[1]).unsqueeze(0)
    logits = model.score(text, place, None, model.new_cache(1, text.shape[1])).logits[0, -1]
    settings = view.sampler.settings
    if settings.temperature > 0:
        key = view.sampler.rows([row]).noise(Stream.TARGET, torch.tensor([[text.shape[1]]]))
        alive = logits >= logits.sort(descending=True).values[settings.top_k - 1] if settings.top_k else logits > -1e9
        noise = gumbel(key, torch.arange(len(logits)))[0, 0]
        logits = (logits + settings.temperature * noise).masked_fill(~alive, float("-inf"))
    return (logits / spread).log_softmax(-1).tolist()


def paths_of(tree: TokenTree, row: int) -> dict[tuple[int, ...], float]:
    """The nodes of a row's tree by their paths, with their scores."""
    assert tree.score is not None
    found: list[tuple[int, ...]] = []
    for node in range(tree.length[row]):
        above = int(tree.parent[row, node])
        assert above < node
        found.append((found[above] if above >= 0 else ()) + (int(tree.tokens[row, node]),))
    assert len(set(found)) == len(found)
    return dict(zip(found, tree.score[row].tolist(), strict=False))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_tree_has_the_best_expectation_of_all_subtrees(settings: Sampling) -> None:
    model, spread, budget, depth = make_model(), 0.8, 4, 3
    view = make_view(model, settings)
    tree = draft_best(Drafter(model, model.new_cache(3, 64)), view, [depth] * 3, budget, spread=spread)
    for row in range(3):
        value: dict[tuple[int, ...], float] = {(): 1.0}
        for size in range(1, depth + 1):
            for path in itertools.product(range(3), repeat=size):
                scores = next_scores(model, view, row, path[:-1], spread)
                value[path] = value[path[:-1]] * math.exp(scores[path[-1]])
        best = max(
            sum(value[path] for path in nodes)
            for nodes in itertools.combinations([path for path in value if path], budget)
            if all(len(path) == 1 or path[:-1] in nodes for path in nodes)
        )
        drafted = paths_of(tree, row)
        assert all(abs(math.exp(score) - value[path]) < 1e-9 for path, score in drafted.items())
        assert sum(math.exp(score) for score in drafted.values()) == pytest.approx(best, abs=1e-9)


def by_heap(model: ToyModel, view: View, row: int, budget: int, depth: int, spread: float) -> set[tuple[int, ...]]:
    """Algorithm 1 of DySpec, likeliest siblings first: pop the slot of the highest value, fill it, push two slots."""
    filled: set[tuple[int, ...]] = set()
    heap: list[tuple[float, int, tuple[int, ...], int, float]] = [(-1.0, 0, (), 0, 1.0)]
    number = itertools.count(1)
    while heap and len(filled) < budget:
        value, _, path, order, reach = heapq.heappop(heap)  # value = reach x what the siblings before it left over
        probs = [math.exp(score) for score in next_scores(model, view, row, path, spread)]
        ranked = sorted(range(len(probs)), key=lambda token: -probs[token])
        token = ranked[order]
        if probs[token] == 0:
            continue
        filled.add((*path, token))
        if order + 1 < len(ranked):
            left = -value - reach * probs[token]
            heapq.heappush(heap, (-left, next(number), path, order + 1, reach))
        if len(path) + 1 < depth:
            own = reach * probs[token]
            heapq.heappush(heap, (-own, next(number), (*path, token), 0, own))
    return filled


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("budget", [1, 4, 9])
def test_slots_are_filled_in_the_order_of_the_paper(settings: Sampling, budget: int) -> None:
    model = make_model()
    view = make_view(model, settings)
    tree = draft_best(Drafter(model, model.new_cache(3, 64)), view, [4] * 3, budget, by_slot=True, spread=0.6)
    for row in range(3):
        assert set(paths_of(tree, row)) == by_heap(model, view, row, budget, 4, 0.6)


def test_slots_by_hand() -> None:
    # One place, chances 0.5, 0.3, 0.2: slots are worth 1, 0.5, 0.2; below the first child the next slot is worth 0.5.
    class Flat(ToyModel):
        def score(self, *args: object, **kwargs: object):  # type: ignore[no-untyped-def]
            scores = super().score(*args, **kwargs)  # type: ignore[arg-type]
            scores.logits[:] = torch.tensor([0.5, 0.3, 0.2]).double().log()
            return scores

    model = Flat(3)
    view = make_view(model, Sampling(), [[1, 2]])
    for floor, wanted in ((0.6, {(0,)}), (0.4, {(0,), (1,), (0, 0)}), (0.29, {(0,), (1,), (0, 0), (1, 0)})):
        tree = draft_best(Drafter(model, model.new_cache(1, 64)), view, [2], 99, by_slot=True, floor=floor, spread=1.0)
        assert set(paths_of(tree, 0)) == wanted, floor
    # By path: 0.5, 0.3, then 0.25 below the first; a second level adds 0.25 to an expectation of 0.8.
    tree = draft_best(Drafter(model, model.new_cache(1, 64)), view, [9], 3, spread=1.0)
    assert set(paths_of(tree, 0)) == {(0,), (1,), (0, 0)}


def test_growing_stops_where_it_gains_too_little() -> None:
    model = make_model(5)
    view = make_view(model, Sampling())
    counter = Counter()
    sizes = []
    for gain in (0.0, 0.3, 9.0):
        counter = Counter()
        tree = draft_best(Drafter(model, model.new_cache(3, 64, counter)), view, [8] * 3, 12, min_gain=gain)
        assert tree.length == [12] * 3 if gain == 0 else max(tree.length) <= 12
        sizes.append((counter.nfe, max(len(path) for row in range(3) for path in paths_of(tree, row))))
    assert sizes[0] > sizes[1] > sizes[2] and sizes[2][1] == 1


@pytest.mark.parametrize("settings", [*SETTINGS, Sampling(repetition_penalty=1.5)], ids=str)
def test_a_rows_tree_is_its_own(settings: Sampling) -> None:
    model = make_model(7)
    view = make_view(model, settings)
    levels = [4, 0, 2]
    together = draft_best(Drafter(model, model.new_cache(3, 64)), view, levels, 6)
    shape = RankTree.regular((2, 2, 1))
    parent, rank, length = RankTree.stack([shape] * 3)
    filled, ranks = draft_shape(Drafter(model, model.new_cache(3, 64)), view, levels, parent, rank, length)
    assert together.length[1] == filled.length[1] == 0 and filled.length == [10, 0, 6]
    for row in (0, 2):
        alone = View([TEXTS[row]], [1], [50], 0, view.cache, view.sampler.rows([row]))
        tree = draft_best(Drafter(model, model.new_cache(1, 64)), alone, levels[row : row + 1], 6)
        assert paths_of(tree, 0) == pytest.approx(paths_of(together, row))
        own = draft_shape(
            Drafter(model, model.new_cache(1, 64)), alone, levels[row : row + 1], parent[:1], rank[:1], length[:1]
        )
        assert paths_of(own[0], 0) == pytest.approx(paths_of(filled, row))
        assert own[1][0].tolist() == ranks[row, : own[0].length[0]].tolist()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_shape_is_filled_by_rank(settings: Sampling) -> None:
    model = make_model(6)
    view = make_view(model, settings)
    parent, rank, length = RankTree.stack(
        [RankTree((-1, -1, 0, 0, 1, 2), (0, 1, 0, 1, 0, 0)), RankTree((-1,), (1,)), RankTree()]
    )
    tree, ranks = draft_shape(Drafter(model, model.new_cache(3, 64)), view, [9] * 3, parent, rank, length)
    assert tree.length == [6, 1, 0] and ranks[0].tolist() == [0, 1, 0, 1, 0, 0]
    for row in (0, 1):
        for node, path in enumerate(paths_of(tree, row)):
            scores = next_scores(model, view, row, path[:-1], 0.8)
            assert path[-1] == sorted(range(6), key=lambda token: -scores[token])[int(ranks[row, node])]


def test_what_a_cut_forbids_is_not_drafted() -> None:
    model = make_model(6)
    view = make_view(model, Sampling(temperature=1.0, top_k=2))
    parent, rank, length = RankTree.stack([RankTree.regular((4, 1))] * 3)
    tree, ranks = draft_shape(Drafter(model, model.new_cache(3, 64)), view, [2] * 3, parent, rank, length)
    assert tree.length == [4] * 3 and int(ranks.max()) == 1
    assert draft_best(Drafter(model, model.new_cache(3, 64)), view, [1] * 3, 5).length == [2] * 3


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_first_branch_is_the_coupled_chain(settings: Sampling) -> None:
    model = make_model(9)
    view = make_view(model, settings)
    chain = draft_chain(Drafter(model, model.new_cache(3, 64)), view, [4, 4, 4], origin="")
    tree = draft_tree(Drafter(model, model.new_cache(3, 64)), view, 4, 3, origin="")
    assert tree.length == ([12] * 3 if settings.top_k == 0 else [11] * 3)  # a cut to two leaves level one only two
    regular, _ = draft_shape(
        Drafter(model, model.new_cache(3, 64)), view, [4] * 3, *RankTree.stack([RankTree.regular((1,) * 4)] * 3)
    )
    assert torch.equal(regular.tokens, chain.tokens)
    wide = draft_best(Drafter(model, model.new_cache(3, 128)), view, [4] * 3, 80)
    for row in range(3):
        own = tuple(chain.tokens[row].tolist())
        assert all(own[: n + 1] in paths_of(wide, row) for n in range(3))


def test_scores_are_chances_if_the_drafter_errs_as_assumed() -> None:
    logits = torch.tensor([[[1.0, 0.2, -0.5]]]).double()
    spread, source = 0.6, torch.Generator().manual_seed(0)
    for temperature in (0.0, 0.8):
        settings = Sampling(temperature=temperature)
        view = make_view(make_model(), settings, [[0, 1]])
        place = torch.tensor([[2]])
        chances = branch_scores(view, logits, place, spread=spread).exp().flatten()
        error = -(-torch.rand(40_000, 3, generator=source, dtype=torch.float64).log()).log() * spread
        noise = gumbel(view.sampler.noise(Stream.TARGET, place), torch.arange(3)).flatten()
        picks = (logits.flatten() + error + temperature * noise).argmax(-1)
        assert torch.allclose(torch.bincount(picks, minlength=3).double() / 40_000, chances, atol=0.01)


def test_nodes_are_read_behind_their_own_path() -> None:
    model = make_model(5)
    cache, view = model.new_cache(2, 64), make_view(model, Sampling(), TEXTS[:2])
    cache.lengths = [0, 0]
    for _ in range(1):
        draft_best(Drafter(model, cache), view, [1, 1], 1)
    tree = TokenTree(
        torch.tensor([[3, 1, 4, 2], [2, 2, 0, 0]]), torch.tensor([[-1, -1, 1, 2], [-1, 0, -1, -1]]), [4, 2]
    )
    nodes, is_real = torch.tensor([[3, 0], [1, 0]]), torch.tensor([[True, True], [True, False]])
    logits = read_nodes(model, cache, tree, nodes, is_real)
    for row, at, path in ((0, 0, (1, 4, 2)), (0, 1, (3,)), (1, 0, (2, 2))):
        wanted = torch.tensor(next_scores(model, view, row, path, 1.0)).double()
        assert torch.allclose(logits[row, at].log_softmax(-1), wanted)
    assert cache.lengths == [len(text) for text in TEXTS[:2]]


def test_a_full_context_stops_one_row_only() -> None:
    model = make_model(5, context=6)
    view = make_view(model, Sampling())  # rows of 4, 1 and 7 tokens
    drafter = Drafter(model, model.new_cache(3, 64))
    reach = drafter.reach(view, 4)
    assert reach == [2, 4, 0]
    chain = draft_chain(Drafter(model, drafter.cache), view, reach, origin="")
    assert chain.length == reach and drafter.cache.lengths == [5, 4, 0]
    alone = View(TEXTS[1:2], [1], [50], 0, view.cache, view.sampler.rows([1]))
    own = draft_chain(Drafter(model, model.new_cache(1, 64)), alone, [4], origin="")
    assert chain.tokens[1].tolist() == own.tokens[0].tolist()
    view.texts = [[*TEXTS[0], 1], [*TEXTS[1], 2, 2], TEXTS[2]]
    drafter.forget(Outcome([[1], [2, 2], []], [0, 1, 0], proposal=chain), view)
    assert drafter.cache.lengths == [4, 2, 0]
    assert draft_best(Drafter(model, drafter.cache), view, drafter.reach(view, 2), 3).length == [1 * 3, 3, 0]


def test_keeping_nodes_keeps_their_places() -> None:
    tree = TokenTree(torch.tensor([[4, 5, 6, 7]]), torch.tensor([[-1, -1, 1, 2]]), [4], torch.tensor([[3.0, 4, 2, 1]]))
    part = tree.keep(torch.tensor([[False, True, True, False]]))
    assert (part.tokens.tolist(), part.parent.tolist(), part.length) == ([[5, 6]], [[-1, 0]], [2])
    assert tree.best(2).tokens.tolist() == [[4, 5]] and tree.best(3).parent.tolist() == [[-1, -1, 1]]
    key = torch.tensor([[1.0, 2.0, 2.0, float("-inf"), float("nan")]])
    assert largest(key, 2).tolist() == [[False, True, True, False, False]]
    assert largest(key, 4).tolist() == [[True, True, True, False, False]]


def test_nothing_is_drafted_from_broken_logits() -> None:
    class Broken(ToyModel):
        def score(self, *args: object, **kwargs: object):  # type: ignore[no-untyped-def]
            scores = super().score(*args, **kwargs)  # type: ignore[arg-type]
            scores.logits[0] = float("nan")
            return scores

    model = Broken(5)
    view = make_view(model, Sampling(temperature=0.5))
    for by_slot in (False, True):
        tree = draft_best(Drafter(model, model.new_cache(3, 64)), view, [2] * 3, 4, by_slot=by_slot)
        assert tree.length[0] == 0 and tree.length[1] == 4
    filled, _ = draft_shape(
        Drafter(model, model.new_cache(3, 64)), view, [2] * 3, *RankTree.stack([RankTree.regular((2, 1))] * 3)
    )
    assert filled.length == [0, 4, 4]


def as_tensor(proposal: Proposal) -> Tensor:
    assert proposal.parent is not None
    return torch.stack([proposal.tokens, proposal.parent])


def test_levels_may_differ_by_row() -> None:
    model = make_model(5)
    view = make_view(model, Sampling())
    whole = draft_tree(Drafter(model, model.new_cache(3, 64)), view, 3, 2, origin="")
    part = draft_tree(Drafter(model, model.new_cache(3, 64)), view, [3, 1, 2], 2, origin="")
    assert part.length == [6, 2, 4]
    for row, length in enumerate(part.length):
        assert torch.equal(as_tensor(part)[:, row, :length], as_tensor(whole)[:, row, :length])
