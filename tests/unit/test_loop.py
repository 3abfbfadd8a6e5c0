"""The loop: what it refuses, cuts, counts and keeps apart, and that it waits for the device once per step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import outpace
from outpace.cache import Cache
from outpace.errors import ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.methods.parallel.jacobi import Jacobi
from outpace.methods.speculative.draft_model import DraftModel
from outpace.methods.speculative.layer_skip import LayerSkip
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.run.layout import lay_out
from outpace.run.prefill import catch_up
from outpace.run.row import Row
from outpace.sampling import Sampler, Sampling, row_key
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, drive, make_rows, make_run, target_for, write
from outpace.types import NO_OUTPUTS, Context, Counter, FinishReason, Outputs, Scores, View

SOURCE = Path(outpace.__file__).parent


def test_what_does_not_fit_is_refused() -> None:
    run = make_run(Autoregressive(), capacity=20)
    with pytest.raises(ConfigError, match="empty"):
        run.join([Row([], 0, 1, 5)])
    with pytest.raises(ConfigError, match="fit"):
        run.join([Row([1] * 10, 10, 1, 11)])
    with pytest.raises(ConfigError, match="no rows"):
        run.step()


def test_finished_rows_do_not_join_and_strangers_do_not_leave() -> None:
    rows, run = make_rows(max_tokens=4), make_run(Autoregressive())
    drive(run, rows)
    run.join(rows)
    assert run.rows == []
    others = make_rows()
    run.join(others)
    run.leave(make_rows())
    assert len(run.rows) == len(others)


def test_a_step_returns_what_it_wrote() -> None:
    rows, run = make_rows(), make_run(DraftModel())
    run.join(rows)
    seen: dict[int, list[int]] = {id(row): [] for row in rows}
    while run.rows:
        for row, tokens in run.step():
            seen[id(row)] += tokens
    assert [seen[id(row)] for row in rows] == [row.written for row in rows]
    assert set(run.seconds) == {"prefill", "draft", "score", "accept", "total"} and run.seconds["total"] > 0


@pytest.mark.parametrize("method", [Autoregressive(), PromptLookup(), DraftModel(), Jacobi(), LayerSkip()], ids=str)
def test_a_tight_cache_changes_nothing(method: Method) -> None:
    """With no slot to spare windows are cut, and the text is the same."""
    roomy = write(method, rows=make_rows(PROMPTS[:1]))
    tight = write(method, rows=make_rows(PROMPTS[:1]), capacity=len(PROMPTS[0]) + 16)
    assert tight[0].written == roomy[0].written


@pytest.mark.parametrize(
    "method", [PromptLookup(), DraftModel(), DraftModel(tree_width=2), Jacobi(), LayerSkip()], ids=str
)
def test_the_end_of_the_context_changes_nothing(method: Method) -> None:
    size = len(PROMPTS[0]) + 16
    model, drafter = ToyModel(max_positions=size), ToyModel(max_positions=size - 6, seed=1)
    rows = write(method, rows=make_rows(PROMPTS[:1]), target=model, models={"draft": drafter})
    plain = write(Autoregressive(), rows=make_rows(PROMPTS[:1]), target=model)
    assert rows[0].written == plain[0].written


def test_prefill_counts_its_chunks() -> None:
    rows = write(Autoregressive(), rows=make_rows([PROMPTS[3]], 1))
    assert rows[0].usage.target_nfe == 1 + -(-12 // 4) and rows[0].usage.num_steps == 1


def test_prefill_borders_do_not_depend_on_what_was_there() -> None:
    model, text, seen = target_for("causal"), list(range(11)), []
    cache = model.new_cache(1, 16, Counter())
    for _ in catch_up(model, cache, [text[:3]], chunk=4):
        seen.append(list(cache.lengths))
    for _ in catch_up(model, cache, [text], chunk=4):
        seen.append(list(cache.lengths))
    assert seen == [[2], [4], [8], [10]]
    assert list(catch_up(model, cache, [text], chunk=4)) == []


def test_cancelled_rows_keep_their_text() -> None:
    rows, run = make_rows(), make_run(PromptLookup())
    run.join(rows)
    drive(run, steps=3)
    before = [row.written for row in rows]
    run.leave(rows)
    assert run.rows == [] and [row.written for row in rows] == before and rows[0].finish is None


def test_masked_rows_end_at_their_length() -> None:
    rows = write(MaskedDiffusion(), rows=make_rows(max_tokens=7))
    assert all(row.finish is FinishReason.LENGTH and len(row.written) == 7 for row in rows)


class DeviceModel(ToyModel):
    """A forward in PyTorch alone, as on a device; each token sees itself, since no value matters here."""

    def score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS,
        inputs: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Scores:
        cache.counter.add(tokens.shape[1], self.capabilities.num_layers - len({*skip}))
        state = self.embed(tokens) if inputs is None else inputs
        if ask is not None:
            state = state.gather(1, ask.unsqueeze(-1).expand(-1, -1, state.shape[-1]))
        return Scores(self.head(state))


@pytest.mark.parametrize(
    "settings", [Sampling(), Sampling(temperature=0.8, top_k=5, top_p=0.9)], ids=["greedy", "top-k"]
)
@pytest.mark.parametrize("method", [Autoregressive(), DraftModel(draft_len=3, is_adaptive=False), LayerSkip()], ids=str)
def test_a_step_never_waits_for_the_device(method: Any, settings: Sampling) -> None:
    """Propose, lay out, score and accept on tensors without values: reading one would fail."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        target, drafter = DeviceModel(), DeviceModel(seed=1)
        texts = [[1, 2, 3], [4, 5, 6]]
        sampler = Sampler(settings, [row_key(1, i) for i in range(2)])
        cache = target.new_cache(2, 32)
        cache.lengths = [2, 2]
        counters = {"target": Counter(), "draft": Counter()}
        state = method.start(Context(target, texts, 32, sampler, {"draft": drafter}, counters, cache=cache))
        view = View(texts, [3, 3], [9, 9], 0, cache, sampler)
        proposal = method.propose(view, state)
        assert proposal.tokens.shape[1] == (0 if isinstance(method, Autoregressive) else max(proposal.length))
        layout = lay_out([text[2:] for text in texts], cache.lengths, proposal)
        scores = target.score(layout.tokens, layout.position, layout.visible, cache, layout.ask)
        decision = method.accept(proposal, scores, view, state)
        assert decision.tokens.shape == (2, proposal.tokens.shape[1] + 1)
