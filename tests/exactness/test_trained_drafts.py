"""A drafter that reads the target, wherever it drafts: it sees the right states, and the text is plain decoding's."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from outpace.heads.draft import HeadDrafter, SlotDrafter
from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, HeadConfig, HeadNet, Lesson
from outpace.methods.auto import Auto
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.mixed import Mixed
from outpace.methods.speculative.trained_drafter import TrainedDrafter, TrainedState
from outpace.run.loop import Run
from outpace.testing.world import PROMPTS, SETTINGS, ends_under, make_rows, make_run, reference, target_for, write
from outpace.types import Context, Outcome, View, Wanted

TARGET = target_for("causal")


@dataclass
class SpyDrafter(SlotDrafter):
    """Holds what it is told of the token before the last one against what the target says of it."""

    def texts(self, view: View, reach: Sequence[int]) -> Tensor:
        for row, ahead in enumerate(reach):
            if ahead:
                text = view.texts[row]
                whole = TARGET.score(
                    torch.tensor([text[:-1]]), torch.arange(len(text) - 1).unsqueeze(0), None,
                    TARGET.new_cache(1, len(text)), outputs=self.features.outputs,
                ).last  # fmt: skip
                assert whole is not None
                torch.testing.assert_close(self.features.held[row][-1], whole[0, -1], rtol=0, atol=1e-9)
                looks.append(row)
        return super().texts(view, reach)


looks: list[int] = []


class SpyNet(HeadNet):
    """Drafts the token that the state tells of, again and again; some branch of a tree is often right."""

    kind: ClassVar[str] = ""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.none = nn.Linear(1, 1)

    def loss(self, batch: Batch) -> Lesson:
        raise NotImplementedError

    def new_drafter(self, model: HeadModel, context: Context) -> HeadDrafter:
        return SpyDrafter.begin_with(model, context)

    def slots(self, model: HeadModel, states: Tensor, token: Tensor) -> Tensor:
        return states.unsqueeze(1).expand(-1, self.config.depth, -1)

    def after(self, model: HeadModel, slots: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        return model.logits(slots.gather(1, depth.unsqueeze(-1).expand(-1, -1, slots.shape[-1])))


@functools.cache
def spy() -> HeadModel:
    return HeadModel(
        SpyNet(HeadConfig(kind="spy", hidden_size=TARGET.hidden, vocab_size=13, num_layers=3, depth=3)), TARGET
    )


MODELS = {"draft": spy()}
AUTO, LONG = (
    Auto(arms="trained-drafter,suffix,token-recycling", explore=0.5, is_timed=False),
    40,
)  # tokens, so that a trial pays


@pytest.fixture(autouse=True)
def _fresh() -> None:
    looks.clear()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("method", [TrainedDrafter(budget=6), AUTO], ids=["alone", "auto"])
def test_ragged_rows_write_plain_text(method: Method, name: str) -> None:
    rows = make_rows(end_tokens=ends_under(SETTINGS[name]), max_tokens=LONG)
    run = make_run(method, SETTINGS[name], models=MODELS)
    run.join(rows)
    while run.rows:
        run.step()
    assert tuple(tuple(row.written) for row in rows) == reference(name, LONG)
    assert looks or max(len(row.written) for row in rows) < LONG


def test_auto_lets_it_draft_and_begins_it_with_the_prompt() -> None:
    run, rows = make_run(AUTO, models=MODELS), make_rows(max_tokens=LONG)
    run.join(rows)
    assert [arm.name for arm in run.batch.state.arms] == ["trained-drafter"]  # it drafts from the text too
    origins, drafted = list[str](), list[int]()
    while run.rows:
        run.step()
        assert run.last is not None and run.last.proposal is not None
        origins.append(run.last.proposal.origin)
        if origins[-1] == "trained-drafter":
            drafted.append(max(run.last.proposal.length))
    assert drafted[0] > 0 and looks  # no step is lost to a drafter that saw nothing
    # At least a whole trial: an untrained drafter is not worth more, and a good one's share is told in test_paying.
    assert origins.count("trained-drafter") >= 2 and sum(row.usage.num_accepted for row in rows) > 0


def test_rows_join_and_leave_and_come_back() -> None:
    laws = ("greedy", "temperature 0.7", "greedy", "top-k", "repetition penalty")
    prompts = [PROMPTS[at % len(PROMPTS)] for at in range(len(laws))]
    for method in (AUTO, TrainedDrafter(budget=6)):
        rows = make_rows(prompts, LONG)
        for row, law in zip(rows, laws, strict=True):
            row.settings, row.wanted = SETTINGS[law], Wanted(method, MODELS)
        run = make_run(Mixed(Autoregressive()), models={})
        run.join(rows[:2])
        for row in rows[2:]:
            run.step(5)
            run.join([row], in_line=True)
        run.step(5)
        gone = run.rows[0]
        run.leave([gone])  # as a server does that has no memory left
        run.step(5)
        run.join([gone], in_line=True)
        while run.rows:
            run.step(5)
        for number, (row, law) in enumerate(zip(rows, laws, strict=True)):
            alone = make_rows(prompts, LONG)[number]
            plain = make_run(Autoregressive(), SETTINGS[law])
            plain.join([alone])
            while plain.rows:
                plain.step()
            assert row.written == alone.written and not row.notes, (method, number)
    assert looks


@pytest.mark.parametrize("size", [17, 20])
def test_a_prefix_that_was_found_was_never_seen(size: int) -> None:
    """States of what lies in the cache are unknown; drafting begins where they are known again."""
    prompt = (*PROMPTS[0], *PROMPTS[0])[:size]
    (row,), (alone,) = make_rows([prompt]), make_rows([prompt])
    write(Autoregressive(), rows=[alone])
    run = make_run(TrainedDrafter(budget=6, has_text=False, is_timed=False), models=MODELS)
    run.pages = TARGET.new_pool(20, 16)
    # What an earlier text has left of the same beginning.
    cache = run.pages.new_cache(1)
    TARGET.score(torch.tensor([prompt[:16]]), torch.arange(16).unsqueeze(0), None, cache)
    cache.keep([range(16)])
    row.cached = list(cache.row_tables[0]), 16
    run.join([row])
    drafted = []
    while run.rows:
        drafted.append(_drafts(run))
    assert row.written == alone.written and looks
    assert (drafted[0] > 0) == (size > 17) and drafted[1] > 0


@dataclass(frozen=True)
class Deaf(TrainedDrafter):
    """Misses some steps."""

    name: ClassVar[str] = "deaf"

    def observe(self, outcome: Outcome, view: View, state: TrainedState) -> TrainedState:
        return state if view.step in (3, 4, 7) else super().observe(outcome, view, state)


def test_a_gap_locks_no_row_out() -> None:
    rows, run, drafted = make_rows(), make_run(Deaf(budget=6, has_text=False, is_timed=False), models=MODELS), []
    run.join(rows)
    while run.rows:
        drafted.append(_drafts(run))
    assert tuple(tuple(row.written) for row in rows) == reference("greedy")
    assert [number for number, nodes in enumerate(drafted[:9]) if not nodes] == [3, 4, 7]


def _drafts(run: Run) -> int:
    run.step()
    assert run.last is not None and run.last.proposal is not None
    return sum(run.last.proposal.length)
