"""Texts laid aside: whose they may be, when they count as ended, and what of the caches goes with rows that fork."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from outpace.cache import Cache
from outpace.errors import ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.run.row import NO_MORE, Row
from outpace.testing.grammar import ToyGrammar
from outpace.testing.world import PROMPTS, make_rows, toy_decode, with_stop, write
from outpace.types import Decision, Ending, FinishReason, Needs, Proposal, Scores, View


@dataclass(frozen=True)
class Lays(Autoregressive):
    """Lays a text aside at its first step, and ends all rows at its second."""

    row: int = 0
    is_told: bool = True
    ends_at: int = 3

    @property
    def needs(self) -> Needs:
        return Needs(has_forks=self.is_told)

    def accept(self, proposal: Proposal, scores: Scores, view: View, state: Any) -> Decision:
        decision, rows = super().accept(proposal, scores, view, state), range(len(view.texts))
        if view.step == 0:
            return replace(
                decision, endings=[Ending(self.row, [self.ends_at], [-1], -0.5) if at < 2 else None for at in rows]
            )
        return replace(decision, num=decision.num * 0, is_over=[True] * len(rows))


def rows_of(groups: tuple[int, ...]) -> list[Row]:
    rows = make_rows([PROMPTS[0]] * len(groups), end_tokens=(3,))
    for row, group in zip(rows, groups, strict=True):
        row.group = group
    return rows


def test_rows_end_with_the_texts_beside_them() -> None:
    rows = rows_of((0, 0, 0))
    write(Lays(), rows=rows)
    assert [row.written for row in rows] == [[3], [3], []]
    assert [row.finish for row in rows] == [FinishReason.EOS, FinishReason.EOS, FinishReason.ERROR]
    assert [row.score for row in rows] == [-0.5, -0.5, None] and rows[2].notes == [NO_MORE]
    assert all(row.usage.num_emitted == len(row.written) and row.usage.num_steps == 2 for row in rows[:2])


@pytest.mark.parametrize(
    ("method", "groups", "word"),
    [
        (Lays(row=2), (0, 0, 1), "another group"),
        (Lays(ends_at=4), (0, 0), "not ended"),
        (Lays(is_told=False), (0, 0), "unasked"),
    ],
    ids=str,
)
def test_what_is_laid_aside_is_of_the_group_and_ended(method: Lays, groups: tuple[int, ...], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        write(method, rows=rows_of(groups))


def test_a_row_tells_what_would_end_it() -> None:
    row = make_rows([[5]], 4, end_tokens=(3,))[0]
    assert row.would_end([3]) and not row.would_end([3, 4])
    row.stop_tokens = (6,)
    assert row.would_end([4, 6])
    with_stop(row, toy_decode([7, 8])[1:3])
    assert row.would_end([7, 8]) and not row.would_end([8]) and row.text is not None and not row.text.text
    row.obey(ToyGrammar(goal=9))
    assert row.would_end([2, 9]) and not row.would_end([2, 1]) and row.state is not None and not row.state.tokens


def test_rows_that_follow_each_other_are_copied_as_far_as_they_hold_something() -> None:
    cache = Cache([torch.rand(4, 2, 6, 3), torch.rand(4, 2, 6, 3)], 2, lengths=[2, 3, 1, 0])
    cache.stage(torch.zeros(4, 2))
    source, before = [1, 1, 3, 2], [buffer.clone() for buffer in cache.buffers]
    cache.follow(source)
    assert cache.lengths == [3, 3, 0, 1]
    for buffer, old in zip(cache.buffers, before, strict=True):
        for row, at in enumerate(source):
            assert torch.equal(buffer[row, :, : cache.lengths[row] + 2], old[at, :, : cache.lengths[row] + 2])
