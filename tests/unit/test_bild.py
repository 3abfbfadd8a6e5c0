"""Big Little Decoder: its two policies by hand, against a plain simulation, and at their extremes."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from outpace.accept.lenient import lenient
from outpace.errors import ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.speculative.bild import Bild
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.sampling import Sampler, Sampling, row_key
from outpace.testing import check_method
from outpace.testing.world import SETTINGS, drafter_for, drive, make_rows, make_run, reference, target_for, write
from outpace.types import Adapter, Proposal, Scores

NEVER = float("inf")
VARIANTS = [
    Bild(draft_len=3),
    Bild(fallback=0.3, rollback=1.0, draft_len=2),
    Bild(fallback=0.0, rollback=NEVER, draft_len=3),
    Bild(fallback=1.0),
    Bild(fallback=0.0, rollback=0.0, draft_len=4),
]


@pytest.mark.parametrize("method", VARIANTS, ids=str)
def test_contract(method: Bild) -> None:
    check_method(method, every=3)


# The large model's laws after the root and after two nodes: -log p of the drafts 1, 2, 3 is log 4, log 10, log 2.
LAWS = [[0.6, 0.25, 0.1, 0.05], [0.5, 0.3, 0.1, 0.1], [0.2, 0.2, 0.1, 0.5]]


@pytest.mark.parametrize(
    ("threshold", "count", "tokens", "path", "is_recovered"),
    [
        (NEVER, 3, [1, 2, 3], [0, 1, -1], False),  # the third draft is no node: the second one's logits judge it
        (NEVER, 2, [1, 2, 3], [0, 1, -1], False),  # unsure after two: the large model writes the third
        (math.log(10) + 1e-6, 3, [1, 2, 3], [0, 1, -1], False),
        (math.log(10) - 1e-6, 3, [1, 0], [0, -1], True),
        (math.log(4) - 1e-6, 3, [0], [-1], True),
        (0.0, 3, [0], [-1], True),
        (NEVER, 0, [0], [-1], False),
    ],
)
def test_the_rollback_policy(
    threshold: float, count: int, tokens: list[int], path: list[int], is_recovered: bool
) -> None:
    drafts = torch.tensor([[1, 2, 3]])
    view: Any = SimpleNamespace(texts=[[0]], prompts=[1], lengths=[1], sampler=Sampler(Sampling(), [row_key(0, 0)]))
    proposal = Proposal(drafts[:, :2], [min(count, 2)])
    decision = lenient(proposal, Scores(torch.tensor([LAWS]).log()), view, threshold, drafts, [count])
    num = int(decision.num)
    assert decision.tokens[0, :num].tolist() == tokens
    assert decision.path is not None and decision.path[0, :num].tolist() == path
    assert decision.is_recovered is not None and bool(decision.is_recovered) == is_recovered


def test_a_draft_that_the_large_model_writes_too_is_never_taken_back() -> None:
    view: Any = SimpleNamespace(texts=[[0]], prompts=[1], lengths=[1], sampler=Sampler(Sampling(), [row_key(0, 0)]))
    drafts, logits = torch.tensor([[0]]), torch.tensor([LAWS[:2]]).log()
    decision = lenient(Proposal(drafts, [1]), Scores(logits), view, 0.0, drafts, [1])
    assert decision.tokens[0, : int(decision.num)].tolist() == [0, 0]


def next_law(model: Adapter, text: list[int]) -> torch.Tensor:
    """The model's law after a text, by one forward of the whole of it."""
    cache = model.new_cache(1, len(text))
    tokens = torch.tensor([text])
    return model.score(tokens, torch.arange(len(text)).unsqueeze(0), None, cache).logits[0, -1].softmax(-1)


def simulated(prompt: list[int], count: int, method: Bild) -> tuple[list[int], int]:
    """The algorithm token by token, without caches: the text, and how often the large model was asked."""
    large, small = target_for("causal"), drafter_for("causal")
    text, calls = list(prompt), 0
    while len(text) - len(prompt) < count:
        begin, is_unsure = len(text), False
        while len(text) - begin <= method.draft_len and len(text) - len(prompt) < count:
            law = next_law(small, text)
            is_unsure = float(law.max()) < method.fallback or method.fallback >= 1
            if is_unsure:
                break
            text.append(int(law.argmax()))
        calls += 1
        for at in range(begin, len(text)):
            law = next_law(large, text[:at])
            if -math.log(law[text[at]]) > method.rollback and int(law.argmax()) != text[at]:
                text = [*text[:at], int(law.argmax())]
                break
        else:
            if is_unsure:
                text.append(int(next_law(large, text).argmax()))
    return text[len(prompt) :], calls


@pytest.mark.parametrize(
    "method",
    [Bild(fallback=f, rollback=r, draft_len=n) for f in (0.0, 0.15, 0.3) for r in (0.5, 2.0, NEVER) for n in (1, 3)],
    ids=str,
)
def test_the_whole_algorithm(method: Bild) -> None:
    rows = write(method)
    for row in rows:
        text, calls = simulated(row.tokens[: row.num_prompt], row.max_tokens, method)
        assert row.written == text
        assert row.usage.num_steps == calls


@pytest.mark.parametrize("name", ["greedy", "temperature 0.7", "repetition penalty", "bad words", "everything"])
def test_extreme_thresholds_are_one_model_alone(name: str) -> None:
    small = [row.written for row in write(Autoregressive(), SETTINGS[name], target=drafter_for("causal"))]
    large = [list(tokens) for tokens in reference(name)]
    assert small != large
    for draft_len in (1, 4):
        alone = write(Bild(fallback=0.0, rollback=NEVER, draft_len=draft_len), SETTINGS[name])
        assert [row.written for row in alone] == small
        for method in (Bild(fallback=1.0, draft_len=draft_len), Bild(fallback=0.0, rollback=0.0, draft_len=draft_len)):
            assert [row.written for row in write(method, SETTINGS[name])] == large


def test_the_small_model_alone_asks_the_large_one_once_a_window() -> None:
    (row,) = write(Bild(fallback=0.0, rollback=NEVER, draft_len=4), rows=make_rows([(1, 2, 3)], 15))
    assert (row.usage.num_steps, row.usage.num_proposed) == (3, 12)  # five tokens a step, four of them nodes


def test_the_large_model_alone_drafts_nothing() -> None:
    run: Run = drive(make_run(Bild(fallback=1.0)), make_rows())
    assert run.counters["draft"].nfe == 0


@pytest.mark.parametrize(
    "settings",
    [{"fallback": -0.1}, {"fallback": 1.5}, {"rollback": -1.0}, {"rollback": float("nan")}, {"draft_len": 0}],
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Bild(**settings)


def test_row_is_finished_by_the_small_models_end_token() -> None:
    (plain,) = write(Bild(fallback=0.0, rollback=NEVER, draft_len=4), rows=make_rows([(1, 2, 3)], 15))
    end = plain.written[6]
    row = Row([1, 2, 3], 3, plain.key, 15, (end,))
    write(Bild(fallback=0.0, rollback=NEVER, draft_len=4), rows=[row])
    assert row.written == plain.written[: plain.written.index(end) + 1]
