"""Layout, row, text, state, tree and cache: the small parts that the loop is made of."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from outpace.cache import Cache
from outpace.draft.ngram import NgramIndex
from outpace.run import state as trees
from outpace.run.layout import lay_out
from outpace.run.row import Row
from outpace.run.tree import ancestors, depth
from outpace.schedule import next_length
from outpace.text.stream import TextStream
from outpace.types import Counter, FinishReason, Proposal


def proposal(tokens: list[list[int]], length: list[int], parent: list[list[int]] | None = None) -> Proposal:
    return Proposal(torch.tensor(tokens), length, None if parent is None else torch.tensor(parent))


def test_an_even_layout_needs_no_mask() -> None:
    layout = lay_out([[5], [6]], [3, 9], proposal([[1, 2], [3, 4]], [2, 2]))
    assert layout.tokens.tolist() == [[5, 1, 2], [6, 3, 4]]
    assert layout.position.tolist() == [[3, 4, 5], [9, 10, 11]]
    assert layout.visible is None and layout.ask is None and layout.start == [1, 1]


def test_a_ragged_layout_hides_its_padding() -> None:
    layout = lay_out([[5, 7], [6]], [3, 9], proposal([[1, 2], [3, 0]], [2, 1]))
    assert layout.tokens.shape == (2, 4) and layout.tokens[0].tolist() == [5, 7, 1, 2]
    assert layout.tokens[1, :2].tolist() == [6, 3]
    assert layout.position.tolist() == [[3, 4, 5, 6], [9, 10, -1, -1]]
    assert layout.ask is not None and layout.ask.tolist() == [[1, 2, 3], [0, 1, 2]]
    assert layout.start == [2, 1]


def test_a_tree_sees_its_ancestors_and_all_pending() -> None:
    layout = lay_out([[5, 7]], [3], proposal([[1, 2, 3]], [3], [[-1, -1, 1]]))
    assert layout.position.tolist() == [[3, 4, 5, 5, 6]]
    assert layout.visible is not None
    assert layout.visible[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]


def test_on_a_canvas_only_padding_is_hidden() -> None:
    """Padding has no position, which hides it; all else is as the method proposed it."""
    given = proposal([[5, 7, 1, 2], [6, 3, 4, 0]], [4, 3])
    given.position = torch.tensor([[0, 1, 2, 3], [4, 6, 7, 0]])
    given.ask = torch.tensor([[2, 3], [1, 2]])
    given.is_whole = True
    layout = lay_out([[], []], [0, 4], given)
    assert layout.position.tolist() == [[0, 1, 2, 3], [4, 6, 7, -1]]
    assert layout.tokens is given.tokens and layout.ask is given.ask
    assert layout.visible is None and layout.start == [0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_ancestors_equal_a_walk_up(seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    parent = torch.tensor([[int(torch.randint(-1, max(node, 1), (1,), generator=source)) for node in range(9)]])
    parent[0, 0] = -1
    sees = ancestors(parent)[0]
    for node in range(9):
        path, at = set(), node
        while at >= 0:
            path.add(at)
            at = int(parent[0, at])
        assert set(sees[node].nonzero().flatten().tolist()) == path
        assert int(depth(ancestors(parent))[0, node]) == len(path)


def test_row_ends() -> None:
    row = Row([1, 2], 2, 0, 3, (9,))
    assert not row.push(4) and row.room == 2 and row.push(9)
    assert row.finish is FinishReason.EOS and row.written == [4, 9]
    row = Row([1, 2], 2, 0, 1)
    assert row.push(4) and row.finish is FinishReason.LENGTH
    row = Row([1, 2], 2, 0, 5)
    assert row.push(-1) and row.finish is FinishReason.ERROR and row.written == []


def spell(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def test_a_row_stops_at_a_string_across_tokens() -> None:
    row = Row([65], 1, 0, 50, text=TextStream(spell, ("lo w", "zzz"), [65]))
    ends = [row.push(byte) for byte in b"hello w"]
    assert ends == [False] * 6 + [True] and row.finish is FinishReason.STOP
    assert row.text is not None and row.text.text == "hel"
    assert row.text.push(33) and row.text.text == "hel"


def test_an_unfinished_character_is_let_through_at_the_end() -> None:
    stream = TextStream(spell)
    for byte in "a\N{CJK UNIFIED IDEOGRAPH-65E5}".encode()[:3]:
        stream.push(byte)
    assert stream.text == "a" and stream.release() == "a"
    stream.flush()
    assert stream.release(is_final=True) == "\N{REPLACEMENT CHARACTER}"
    row = Row([65], 1, 0, 2, text=TextStream(spell))
    row.push(0xE6), row.push(0x97)
    assert row.text is not None and row.text.text == "\N{REPLACEMENT CHARACTER}"


def test_bytes_that_never_form_a_character_do_not_block() -> None:
    stream = TextStream(spell)
    for _ in range(12):
        stream.push(0x97)
    for byte in b"ok":
        stream.push(byte)
    stream.flush()
    assert stream.text.endswith("ok") and stream.text.count("\N{REPLACEMENT CHARACTER}") == 12


def test_text_that_may_become_a_stop_waits() -> None:
    stream, out = TextStream(spell, ("abc",)), []
    for byte in b"xababd":
        stream.push(byte)
        out.append(stream.release())
    assert out == ["x", "", "", "ab", "", "abd"]


def test_the_earliest_stop_cuts() -> None:
    stream = TextStream(lambda ids: "".join("xxSTOPyEND" if i else "a" for i in ids), ("END", "STOP"))
    assert stream.push(1) and stream.text == "xx"


@dataclass
class State:
    table: torch.Tensor
    names: list[str]
    cache: Cache
    setting: int = 3


def make_state(rows: int, first: int = 0) -> State:
    buffer = torch.arange(first, first + rows).view(rows, 1, 1).expand(rows, 4, 2).double().clone()
    cache = Cache([buffer], 1, Counter(), list(range(1, rows + 1)))
    return State(torch.arange(first, first + rows).unsqueeze(1), [chr(97 + first + i) for i in range(rows)], cache)


def test_state_rows_and_join() -> None:
    picked = trees.rows(make_state(3), [2, 0])
    assert picked.table.flatten().tolist() == [2, 0] and picked.names == ["c", "a"] and picked.cache.lengths == [3, 1]
    both = trees.join([picked, make_state(1, 5)])
    assert both.table.flatten().tolist() == [2, 0, 5] and both.names == ["c", "a", "f"] and both.setting == 3
    assert both.cache.buffers[0][:, 0, 0].tolist() == [2, 0, 5] and both.cache.lengths == [3, 1, 1]
    assert trees.rows({"a": [1, 2], "b": None}, [1]) == {"a": [2], "b": None}
    assert trees.join([{"a": [1]}, {"a": [2]}]) == {"a": [1, 2]}


def test_a_state_of_none_is_never_taken_for_the_rows_of_all() -> None:
    """What one state does not know yet, and all rows share, comes from another; rows beside a None are an error."""
    assert trees.join([None, None]) is None
    assert trees.join([{"size": None, "text": ["a"]}, {"size": 3, "text": ["b"]}]) == {"size": 3, "text": ["a", "b"]}
    for states in ([None, torch.zeros(2)], [torch.zeros(2), None], [{"a": None}, {"a": [1]}]):
        with pytest.raises(TypeError, match="None cannot be joined"):
            trees.join(states)


def test_forked_state_is_a_copy() -> None:
    first, second = trees.rows([NgramIndex(1, 3)], [0, 0])
    first.extend([1, 2, 3])
    assert second.lookup([1, 2]) is None


def filled(rows: int = 2, capacity: int = 8) -> Cache:
    buffer = torch.arange(capacity).double().view(1, capacity, 1).repeat(rows, 1, 1)
    return Cache([buffer], 1, Counter(), [2, 3][:rows])


def test_a_chain_is_kept_without_a_copy() -> None:
    cache = filled()
    before = cache.buffers[0].clone()
    cache.keep([[0, 1], [0]])
    assert cache.lengths == [4, 4] and torch.equal(cache.buffers[0], before)


def test_a_path_is_gathered_and_valid_entries_stay() -> None:
    cache = filled()
    cache.keep([[0, 2, 5], [1]])
    assert cache.buffers[0][0, :5, 0].tolist() == [0, 1, 2, 4, 7] and cache.lengths == [5, 4]
    assert cache.buffers[0][1, :4, 0].tolist() == [0, 1, 2, 4]
    cache.truncate([9, 1])
    assert cache.lengths == [5, 1]


def test_a_fork_shares_memory_but_not_lengths() -> None:
    cache = filled()
    fork = cache.fork()
    fork.keep([[0], [0]])
    assert cache.lengths == [2, 3] and fork.lengths == [3, 4]
    assert fork.buffers[0].data_ptr() == cache.buffers[0].data_ptr() and fork.counter is not cache.counter


def test_rows_are_copies_and_join_pads() -> None:
    cache = filled()
    one = cache.rows([1, 1])
    one.buffers[0].zero_()
    assert cache.buffers[0].sum() > 0 and one.lengths == [3, 3]
    joined = Cache.join([cache, filled(1, 12)])
    assert joined.capacity == 12 and joined.lengths == [2, 3, 2]
    assert joined.buffers[0][0, :8, 0].tolist() == list(range(8)) and joined.num_bytes == 3 * 12 * 8


def test_rows_leave_in_place_and_the_last_one_fills_the_gap() -> None:
    buffer = torch.arange(4).double().view(4, 1, 1).repeat(1, 5, 2)
    cache = Cache([buffer], 1, None, [2, 3, 1, 4], [torch.arange(4).unsqueeze(1)])
    cache.leave([0, 3, 2])
    assert cache.lengths == [2, 4, 1] and cache.extra[0].flatten().tolist() == [0, 3, 2]
    assert [cache.buffers[0][row, : cache.lengths[row]].unique().tolist() for row in range(3)] == [[0], [3], [2]]
    assert cache.buffers[0].shape[0] == 3 and cache.buffers[0].data_ptr() == buffer.data_ptr()


def test_extra_tensors_travel_with_their_rows() -> None:
    caches = [Cache([torch.zeros(1, 4, 1)], 1, None, [0], [torch.full((1, n, 2), float(n))]) for n in (2, 3)]
    joined = Cache.join(caches)
    assert joined.extra[0].shape == (2, 3, 2) and joined.rows([1]).extra[0].unique().tolist() == [3]


def test_the_longest_most_recent_match_wins() -> None:
    index, text = NgramIndex(1, 3), [1, 2, 3, 9, 1, 2, 4, 7, 1, 2]
    index.extend(text)
    assert index.lookup(text) == 6
    assert index.lookup([8, 8]) is None
    longer = [3, 1, 2, 5, 9, 1, 2, 6, 3, 1, 2]
    index = NgramIndex(1, 3)
    index.extend(longer)
    assert index.lookup(longer) == 3  # three tokens agree there, two at 7


@pytest.mark.parametrize(
    ("before", "proposed", "accepted", "after"), [(4, 4, 4, 6), (7, 7, 7, 8), (4, 4, 1, 3), (1, 1, 0, 1), (5, 0, 0, 5)]
)
def test_draft_length_follows_acceptance(before: int, proposed: int, accepted: int, after: int) -> None:
    assert next_length(before, proposed, accepted, 8) == after
