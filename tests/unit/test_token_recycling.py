"""Token recycling: the matrix after a known step, the tree that grows from it, and what it is worth."""

import numpy as np
import pytest
import torch

from outpace.draft.likeliest import likeliest
from outpace.draft.recycling import RecyclingMemory, RecyclingTable, tree_shape
from outpace.errors import ConfigError
from outpace.methods.speculative import token_recycling
from outpace.methods.speculative.token_recycling import Recycled, TokenRecycling
from outpace.run.loop import Run
from outpace.sampling import Sampling
from outpace.schedule.cost import CostCurve
from outpace.testing import check_method
from outpace.testing.world import PeriodicModel, drive, make_rows, make_run, write
from outpace.types import Outcome, Proposal, Scores


def scores_of(*rows: tuple[int, ...]) -> Scores:
    """Return logits [1, N, 10] whose likeliest tokens are the given ones, in order."""
    logits = torch.zeros(1, len(rows), 10)
    for place, tokens in enumerate(rows):
        for rank, token in enumerate(tokens):
            logits[0, place, token] = 9.0 - rank
    return Scores(logits)


def test_the_matrix_after_a_known_step() -> None:
    method = TokenRecycling(nodes=4, candidates=2)
    rows = make_rows([[1, 2, 3]], 20)
    run = make_run(method)
    run.join(rows)
    run._prefill(None)
    view, table = run.batch.view(0, None), RecyclingTable(10, 2)
    # The tree below 3: 5 and 7; below 5 again a 7, which is accepted; then 8 is drawn.
    proposal = Proposal(torch.tensor([[5, 7, 7, 0]]), [3], torch.tensor([[-1, -1, 0, 0]]))
    scores = scores_of((5, 4), (7, 6), (1, 2), (8, 9), (0, 3))
    view.texts[0] += [5, 7, 8]
    outcome = Outcome([[5, 7, 8]], [2], [[0, 2, -1]], proposal, scores=scores)
    assert method.observe(outcome, view, Recycled([table], 4)).tables == [table]
    assert {token: table.ids[token].tolist() for token in (3, 5, 7)} == {3: [5, 4], 5: [7, 6], 7: [8, 9]}
    assert (table.ids[[0, 1, 2, 4, 6, 8, 9, 10]] == -1).all()  # padding was not learnt, and 8 is not scored yet


def test_the_matrix_after_a_prompt() -> None:
    method = TokenRecycling(candidates=2)
    run = make_run(method)
    run.join(make_rows([[4, 6, 4, 9]], 20))
    view, table = run.batch.view(0, None), RecyclingTable(10, 2)
    chunk = Outcome([[]], [0], scores=scores_of((1, 2), (3, 5), (6, 7)), chunk=[range(3)])
    method.observe(chunk, view, Recycled([table], 4))
    assert table.ids[4].tolist() == [6, 7] and table.ids[6].tolist() == [3, 5]  # the later 4 counts
    method.observe(Outcome([[]], [0], chunk=[range(3)]), view, Recycled([table], 4))  # no logits: nothing to learn


def test_the_shape_holds_the_likeliest_paths() -> None:
    # Ranks come true with 0.435 and 0.1: 0, 00, 1 and 000 are the four likeliest paths of two children each.
    shape = tree_shape(nodes=4, width=2, depth=3)
    assert shape.parent.tolist() == [-1, -1, 0, 2] and shape.rank.tolist() == [0, 1, 0, 0]
    assert shape.levels == (0, 2, 3, 4)
    assert len(tree_shape(64, 8, 6).parent) == 64
    assert tree_shape(64, 1, 6).levels == (0, 1, 2, 3, 4, 5, 6)  # one candidate: a chain
    assert len(tree_shape(8, 12, 1).rank) == 8 and tree_shape(40, 12, 1).rank.tolist() == list(range(12))


def test_a_tree_by_hand() -> None:
    table = RecyclingTable(10, 2)
    table.learn({3: 0, 5: 1, 7: 2}, np.array([[5, 4], [7, 6], [8, 9]]))
    tokens, parents = table.grow(3, tree_shape(4, 2, 3), 3)
    assert tokens.tolist() == [5, 4, 7, 8] and parents.tolist() == [-1, -1, 0, 2]
    tokens, parents = table.grow(3, tree_shape(4, 2, 3), 2)
    assert tokens.tolist() == [5, 4, 7]
    tokens, parents = table.grow(5, tree_shape(4, 2, 3), 3)  # what follows 8 is not known
    assert tokens.tolist() == [7, 6, 8] and parents.tolist() == [-1, -1, 0]
    tokens, parents = table.grow(0, tree_shape(4, 2, 3), 3)
    assert len(tokens) == len(parents) == 0


def test_nodes_below_an_unknown_token_keep_their_parents() -> None:
    table = RecyclingTable(10, 2)
    table.learn({1: 0, 3: 1}, np.array([[2, 3], [4, 5]]))
    shape = tree_shape(64, 2, 2)  # 2 and 3, then two below each; nothing is known below 2
    tokens, parents = table.grow(1, shape, 2)
    assert tokens.tolist() == [2, 3, 4, 5] and parents.tolist() == [-1, -1, 1, 1]


@pytest.mark.parametrize("vocab", [9, 100, 1000, 8192, 8199, 32000, 32003])
def test_the_likeliest_are_those_of_a_plain_top_k(vocab: int) -> None:
    logits = torch.randn(7, vocab, generator=torch.Generator().manual_seed(vocab))
    assert torch.equal(likeliest(logits, 8), logits.topk(8).indices)
    logits[:, -3:] += 20  # also at the end, which may be a short block
    assert torch.equal(likeliest(logits, 8), logits.topk(8).indices)


def test_the_table_takes_less_than_two_megabytes() -> None:
    assert RecyclingTable(32_000, 8).num_bytes == 33 * 32_000 - 32_000 + 32 < 2_000_000


def test_copies_are_independent_and_a_memory_is_shared() -> None:
    table = RecyclingTable(10, 2)
    other = table.copy()
    other.learn({3: 0}, np.array([[5, 4]]))
    assert table.ids[3].tolist() == [-1, -1]
    memory = RecyclingMemory()
    memory.bind(10)
    assert memory.table(2).copy() is memory.table(2)


@pytest.mark.parametrize("settings", [Sampling(), Sampling(temperature=0.7)], ids=["greedy", "sampled"])
def test_more_than_one_draft_is_accepted_per_step(settings: Sampling) -> None:
    rows = write(TokenRecycling(), settings, make_rows([[0, 1, 2, 3, 4, 5, 0], [0]], 48), target=PeriodicModel(6))
    for row in rows:
        assert row.written == [(row.num_prompt + i) % 6 for i in range(48)]
        assert row.usage.num_accepted / row.usage.num_steps > 1


def run(memory: object = None, method: TokenRecycling | None = None) -> int:
    rows = make_rows([[0]], 24)
    method = method or TokenRecycling()
    drive(Run(PeriodicModel(12), method, Sampling(), capacity=128, memory=memory), rows)
    return rows[0].usage.num_steps


def test_a_memory_starts_hot() -> None:
    memory = RecyclingMemory()
    alone = run()
    assert run(memory) == alone == run() and run(memory) < alone


def test_a_wrong_memory_is_named() -> None:
    with pytest.raises(ConfigError, match="cannot use a memory of type dict_keys"):
        run({}.keys())
    memory = RecyclingMemory()
    run(memory)
    with pytest.raises(ConfigError, match="holds 8 candidates per token, the method wants 4"):
        run(memory, TokenRecycling(candidates=4))
    memory = RecyclingMemory()
    memory.bind(99)
    with pytest.raises(ConfigError, match="99 tokens, the model has 13"):
        run(memory)


def test_the_tree_follows_the_cost_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    for slope in (0.0, 0.05, 0.3, 9.0):
        curve = CostCurve((1, 64), (1.0, 1 + 63 * slope))
        monkeypatch.setattr(token_recycling, "likely_curve", lambda _, curve=curve: curve)
        run = make_run(TokenRecycling())
        run.join(make_rows([[1, 2]], 20))
        sizes[slope] = run.batch.state.nodes
    assert sizes[0.0] == 32 > sizes[0.05] > sizes[0.3] >= sizes[9.0] == 1
    expected = tree_shape(32, 8, 6).expected  # by hand: what a size brings over what it costs, at 0.05 per token
    assert max(range(1, 33), key=lambda n: expected[n] / (1 + 0.05 * n)) == sizes[0.05]


@pytest.mark.parametrize("name", ["nodes", "candidates", "depth"])
def test_bad_settings(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is -1|{name} 0|{name} is 0"):
        TokenRecycling(**{name: -1 if name == "nodes" else 0})


@pytest.mark.parametrize(
    "method",
    [TokenRecycling(nodes=6, candidates=2, has_prompt=False), TokenRecycling(nodes=40, candidates=99)],
    ids=str,
)
def test_variants_fulfil_the_contract(method: TokenRecycling) -> None:
    check_method(method, every=3)
