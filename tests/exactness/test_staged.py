"""Staged drafting: the drafter's own drafts, in fewer of its forwards; the table; the tree around the chain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import outpace
from outpace.draft.backoff import BackoffTable
from outpace.errors import ConfigError
from outpace.methods.speculative.staged import Staged
from outpace.run.row import Row
from outpace.sampling import Sampling
from outpace.testing import check_method
from outpace.testing.answers import check_texts
from outpace.testing.world import SETTINGS, make_rows, make_run
from outpace.types import Outcome

Drafts = list[list[tuple[list[int], list[int]]]]


def drafts(method: Staged, settings: Sampling, rows: list[Row] | None = None) -> tuple[Drafts, int]:
    """Per step and row, tokens and parents of what was proposed; and the drafter's forwards."""
    seen: Drafts = []

    def watch(_: Any, outcome: Outcome) -> None:
        proposal = outcome.proposal
        assert proposal is not None
        parents = [[]] * len(proposal.length) if proposal.parent is None else proposal.parent.tolist()
        nodes = zip(proposal.tokens.tolist(), parents, proposal.length, strict=True)
        seen.append([(tokens[:n], parent[:n]) for tokens, parent, n in nodes])

    run = make_run(method, settings)
    run.watch = watch
    run.join(make_rows(max_tokens=30) if rows is None else rows)
    while run.rows:
        run.step()
    return seen, run.counters["draft"].nfe


@pytest.mark.parametrize("name", ["greedy", "temperature 0.7", "top-k", "repetition penalty"])
@pytest.mark.parametrize("branches", [0, 2])
def test_the_drafts_are_those_of_the_drafter_alone(name: str, branches: int) -> None:
    staged, few = drafts(Staged(branches=branches), SETTINGS[name])
    alone, many = drafts(Staged(branches=branches, ngram_len=0), SETTINGS[name])
    assert staged == alone
    assert few < many or name == "temperature 0.7"  # a table rarely guesses what is drawn in a random world


def test_the_tree_is_a_chain_with_branches() -> None:
    seen, _ = drafts(Staged(draft_len=3, branches=2), Sampling(), make_rows([[5, 1, 5]], 20))
    chains, _ = drafts(Staged(draft_len=3, branches=0, ngram_len=0), Sampling(), make_rows([[5, 1, 5]], 20))
    tokens, parents = seen[0][0]
    assert parents == [-1, -1, -1, 0, 0, 0, 3, 3, 3] and tokens[::3] == chains[0][0][0]
    for level in range(3):
        assert len(set(tokens[3 * level : 3 * level + 3])) == 3


def test_on_the_zoo_the_text_is_plain_and_both_models_run_less() -> None:
    lm = outpace.load("stories", dtype="float32")
    for sampling in ({}, {"temperature": 0.7, "seed": 2}):
        asked: dict[str, Any] = {"max_tokens": 64, "ignore_eos": True, **sampling}
        plain = lm.generate("Once upon a time, there was a", **asked)
        staged = lm.generate("Once upon a time, there was a", method=Staged(), **asked)
        alone = lm.generate("Once upon a time, there was a", method=Staged(ngram_len=0), **asked)
        assert staged.tokens == alone.tokens == plain.tokens
        assert staged.usage.num_accepted == alone.usage.num_accepted
        chain = lm.generate("Once upon a time, there was a", method=Staged(branches=0), **asked)
        assert staged.usage.num_steps < chain.usage.num_steps  # branches are accepted too
        assert staged.usage.draft_nfe < 0.95 * alone.usage.draft_nfe
        assert staged.usage.target_nfe < 0.7 * plain.usage.target_nfe


def test_a_kept_table_saves_more() -> None:
    lm, table = outpace.load("stories", dtype="float32"), BackoffTable()
    asked: dict[str, Any] = {"max_tokens": 48, "ignore_eos": True, "method": Staged(), "memory": table}
    first, again = (lm.generate("Tom and Mia went to the", **asked) for _ in range(2))
    assert first.tokens == again.tokens and again.usage.draft_nfe < 0.8 * first.usage.draft_nfe
    with pytest.raises(ConfigError, match="the model has 17"):
        table.bind(17)


def test_the_table_by_hand() -> None:
    table = BackoffTable(2)
    table.learn([1, 2, 3, 1, 2, 4], 0)
    assert table.guess([1, 2], 3) == [4]  # after 1 2 came 4 last; after 2 4, and after 4, nothing did
    assert table.guess([9, 3], 4) == [1, 2, 4]  # 9 3 is unknown, 3 was followed by 1
    assert table.guess([3], 2) == [1, 2] and table.guess([], 2) == table.guess([7], 2) == []
    table.learn([5, 1, 2, 8], 3)  # only the last token is new: 2, and 1 2, are now followed by 8
    assert table.guess([1], 2) == [2, 8] and table.guess([5], 1) == []
    other = BackoffTable(2)
    other.learn([7, 7], 0)
    assert other.join([other, table]) is other and other.guess([1, 2], 1) == [8] and other.guess([7], 1) == [7]
    with pytest.raises(ConfigError, match="order"):
        BackoffTable(0)


@pytest.mark.parametrize("method", [Staged(branches=0), Staged(draft_len=2, branches=1, ngram_len=1)], ids=str)
def test_contract(method: Staged) -> None:
    check_method(method, every=3)


def test_sampled_texts_follow_the_law() -> None:
    check_texts(Staged(draft_len=2, branches=1), rows=3_000)


@pytest.mark.parametrize("settings", [{"draft_len": 0}, {"order": 0}, {"branches": -1}, {"ngram_len": -1}], ids=str)
def test_bad_settings(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        replace(Staged(), **settings)
