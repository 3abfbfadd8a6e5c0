"""A run that is synced to other texts, and a run inside a run: both equal fresh ones."""

from __future__ import annotations

import pytest
import torch

from outpace.accept import sample_and_match
from outpace.cache import Cache
from outpace.draft.ahead import LookAhead
from outpace.draft.backoff import BackoffTable
from outpace.draft.model import draft_chain
from outpace.draft.nested import NestedRun
from outpace.draft.reading import Drafter
from outpace.draft.trunk import TableGuesses
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.run.loop import _num_shared
from outpace.sampling import Sampler, Sampling, row_key
from outpace.testing.toy import ToyModel
from outpace.testing.world import SETTINGS, make_rows, make_run
from outpace.types import Context, Counter, View

OLD = [[1, 2, 3, 4, 5, 6], [7, 8, 9], [4, 4, 4, 4, 4, 4, 4, 4, 4]]
NEW = [[1, 2, 3, 9, 9, 9, 9], [7, 8], [5]]
NAMES = ["greedy", "temperature 0.7", "repetition penalty", "bad words"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", [Autoregressive(), PromptLookup(draft_len=3)], ids=str)
def test_a_run_that_was_synced_writes_what_a_fresh_one_writes(name: str, method: Method) -> None:
    run, fresh = make_run(method, SETTINGS[name]), make_run(Autoregressive(), SETTINGS[name])
    run.join(make_rows(OLD, 30))
    for _ in range(3):
        run.step()
    for row, text in zip(run.rows, NEW, strict=True):
        row.num_prompt = len(text)
    run.sync(NEW)
    fresh.join(make_rows(NEW, 30))
    rows, wanted = list(run.rows), list(fresh.rows)
    for _ in range(8):
        run.step()
        fresh.step()
    for row, other in zip(rows, wanted, strict=True):
        size = min(len(row.tokens), len(other.tokens))
        assert size >= len(other.tokens) and row.tokens[:size] == other.tokens[:size]


def test_what_old_and_new_texts_share_is_not_read_again() -> None:
    run = make_run(Autoregressive())
    run.join(make_rows(OLD, 30))
    run.step()
    run.sync(NEW)
    assert run.batch.cache is not None
    assert run.batch.cache.lengths == [3, 1, 0] and [row.tokens for row in run.rows] == NEW
    run.sync([[*NEW[0], 1], NEW[1], NEW[2]])
    assert run.batch.cache.lengths == [3, 1, 0]  # what was not forwarded is not valid either


def test_how_many_tokens_two_texts_share() -> None:
    for left, right, same in (
        ([], [1], 0),
        ([1, 2, 3], [1, 2, 3], 3),
        ([1, 2, 3, 4], [1, 2], 2),
        ([1, 2, 3, 4, 5, 6, 7], [1, 2, 9, 4, 5, 6, 7], 2),
        ([0, 2], [1, 2], 0),
    ):
        assert _num_shared(left, right) == _num_shared(right, left) == same


def outer(texts: list[list[int]], settings: Sampling) -> tuple[Context, View]:
    """What a method of the outer run gets."""
    sampler = Sampler(settings, [row_key(3, row) for row in range(len(texts))])
    counters = {"target": Counter(), "draft": Counter()}
    context = Context(ToyModel(), texts, 64, sampler, {"draft": ToyModel(seed=5)}, counters)
    prompts = [len(text) - 1 for text in texts]
    cache = Cache([torch.zeros(len(texts), 64, 0)], 1)
    return context, View(texts, prompts, [20] * len(texts), 0, cache, sampler)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "method",
    [LookAhead(3, 3, 4, sample_and_match), LookAhead(0, 4, 2, sample_and_match), TableGuesses(4, 2, sample_and_match)],
    ids=["window", "phrases", "table"],
)
def test_a_nested_run_drafts_what_the_drafter_writes_token_by_token(
    name: str, method: LookAhead | TableGuesses
) -> None:
    texts = [list(text) for text in OLD]
    context, view = outer(texts, SETTINGS[name])
    nested = NestedRun.begin(context, method, memory=BackoffTable(3))
    for step in range(4):  # the texts go on with some of the drafts, and with a token of the target's own
        reach = [3 + step, 0 if step == 1 else 2, 5]
        drafts = nested.write(view, reach)
        drafter = context.models["draft"]
        alone = draft_chain(Drafter(drafter, drafter.new_cache(3, 64)), view, reach, origin="alone")
        wanted = [tokens[:n] for tokens, n in zip(alone.tokens.tolist(), alone.length, strict=True)]
        assert drafts == wanted, step
        for text, tokens in zip(texts, drafts, strict=True):
            text += [*tokens[:step], 1 + step]
    assert context.counters["draft"].nfe > 0


def test_rows_of_a_nested_run_leave_fork_and_join() -> None:
    context, view = outer([list(text) for text in OLD], SETTINGS["temperature 0.7"])
    nested = NestedRun.begin(context, LookAhead(3, 3, 4, sample_and_match))
    every = nested.write(view, [4, 4, 4])
    index = [2, 0, 2]
    other = nested.rows(index)
    picked = View([list(OLD[i]) for i in index], [len(OLD[i]) - 1 for i in index], [20] * 3, 1, view.cache,
                  view.sampler.rows(index))  # fmt: skip
    assert other.write(picked, [4, 3, 2]) == [every[2], every[0][:3], every[2][:2]]
    assert other.run.rows[0].tokens is not other.run.rows[2].tokens
    first = nested.rows([0])
    joined = first.join([first, nested.rows([1, 2])])
    assert [row.tokens for row in joined.run.rows[1:]] == [row.tokens for row in nested.run.rows[1:]]
    assert joined.write(view, [4, 4, 4]) == every


def test_a_row_past_the_drafters_context_rests() -> None:
    texts = [[1, 2, 3], [4] * 12]
    context, view = outer(texts, Sampling())
    short = ToyModel(seed=5, max_positions=9)
    nested = NestedRun.begin(Context(context.target, texts, 64, context.sampler, {"draft": short}, context.counters),
                             LookAhead(2, 3, 2, sample_and_match))  # fmt: skip
    reach = nested.reach(view, 4)
    assert reach == [4, 0]
    drafts = nested.write(view, reach)
    assert [len(tokens) for tokens in drafts] == [4, 0] and nested.cache.lengths[1] == 0
