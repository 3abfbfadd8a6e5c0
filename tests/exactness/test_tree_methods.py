"""OPT-Tree, DySpec and Sequoia on the zoo: plain decoding's text, and more of it per step than from a fixed tree."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest

import outpace
from outpace.api.engine import LanguageModel
from outpace.errors import ConfigError
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.speculative.draft_model import DraftModel
from outpace.methods.speculative.dyspec import DySpec
from outpace.methods.speculative.opt_tree import OptTree
from outpace.methods.speculative.sequoia import Sequoia
from outpace.methods.speculative.staged import Staged
from outpace.methods.speculative.vocab_trim import VocabTrim
from outpace.run.row import Row
from outpace.schedule.cost import CostCurve
from outpace.testing import check_method
from outpace.testing.answers import check_texts
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS as TOY_PROMPTS
from outpace.testing.world import drive, make_rows, make_run, reference, target_for
from outpace.types import Outcome

PROMPTS = ["Once upon a time, there was a", "The cat sat on", "Tom and Mia went to the", "One day, a little bird"]
SIZE = 14
FIXED = DraftModel(branches=(2, 2, 2))  # 14 nodes
TREES: list[Method] = [OptTree(budget=SIZE), DySpec(budget=SIZE), Sequoia(budget=SIZE)]
COLD: tuple[tuple[str, Any], ...] = ()
WARM: tuple[tuple[str, Any], ...] = (("temperature", 0.7),)


@functools.cache
def stories() -> LanguageModel:
    return outpace.load("stories", dtype="float32")


@functools.cache
def written(method: Method, sampling: tuple[tuple[str, Any], ...]) -> tuple[list[list[int]], float, float]:
    """The texts, tokens per step and drafts per step."""
    results = [
        stories().generate(prompt, method=method, max_tokens=44, seed=seed, ignore_eos=True, **dict(sampling))
        for seed, prompt in enumerate(PROMPTS)
    ]
    steps = sum(result.usage.num_steps for result in results)
    emitted, proposed = (sum(getattr(r.usage, name) for r in results) for name in ("num_emitted", "num_proposed"))
    return [result.tokens for result in results], emitted / steps, proposed / steps


@pytest.mark.parametrize("sampling", [COLD, WARM], ids=["greedy", "warm"])
@pytest.mark.parametrize("method", TREES, ids=lambda method: method.name)
def test_more_is_accepted_than_from_a_fixed_tree_of_the_same_size(method: Method, sampling: Any) -> None:
    tokens, per_step, nodes = written(method, sampling)
    fixed_tokens, fixed_per_step, fixed_nodes = written(FIXED, sampling)
    plain_tokens, _, _ = written(Autoregressive(), sampling)
    assert tokens == fixed_tokens == plain_tokens
    assert nodes <= SIZE and fixed_nodes <= SIZE
    assert per_step > fixed_per_step


def test_the_best_tree_beats_the_others() -> None:
    by_name = {method.name: written(method, COLD)[1] for method in TREES}
    assert max(by_name, key=lambda name: by_name[name]) == "opt-tree"


@pytest.mark.parametrize(
    "method",
    [
        OptTree(budget=14, min_gain=0.0, spread=0.3),
        DySpec(budget=6, threshold=0.1),
        Sequoia(budget=9, acceptance="0.5,0.3,0.3"),
        DraftModel(branches=(3, 1, 2)),
    ],
    ids=str,
)
def test_contract(method: Method) -> None:
    check_method(method, every=3)


@pytest.mark.parametrize("method", [OptTree(budget=4), DySpec(budget=4), Sequoia(budget=4)], ids=str)
def test_sampled_texts_follow_the_law(method: Method) -> None:
    check_texts(method, rows=3_000)


def widths(method: Method, memory: Any, steps: int = 40) -> list[int]:
    """The widest window of each step on the toy world."""
    seen: list[int] = []
    run = make_run(method)
    run.memory = memory
    run.watch = lambda rows, outcome: seen.append(_width(outcome))
    run.join(make_rows(max_tokens=steps))
    while run.rows:
        run.step()
    return seen


def _width(outcome: Outcome) -> int:
    assert outcome.proposal is not None
    return int(outcome.proposal.tokens.shape[1])


def test_the_size_comes_from_the_curve() -> None:
    flat, steep = CostCurve((1, 64), (1.0, 1.01)), CostCurve((1, 2), (1.0, 2.0))
    assert max(widths(Sequoia(max_budget=40), flat)) > 30
    assert max(widths(Sequoia(max_budget=40), steep)) == 0
    assert 0 < max(widths(Sequoia(), CostCurve((1, 8, 9), (1.0, 1.0, 9.0)))) == 7
    assert max(widths(Sequoia(draft_cost=50.0), flat)) == max(widths(Sequoia(acceptance="0"), flat)) == 0
    assert max(widths(Sequoia(budget=5), flat)) == 5
    with pytest.raises(ConfigError, match="cannot use a memory of type int"):
        widths(Sequoia(), 3)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (OptTree, {"budget": 0}, "budget"),
        (OptTree, {"min_gain": -1.0}, "min_gain"),
        (OptTree, {"spread": 0.0}, "spread"),
        (DySpec, {"max_depth": 0}, "max_depth"),
        (DySpec, {"threshold": 1.0}, "threshold"),
        (DySpec, {"spread": -1.0}, "spread"),
        (Sequoia, {"budget": -1}, "budget"),
        (Sequoia, {"acceptance": "0.5,x"}, "acceptance"),
        (Sequoia, {"acceptance": "1.5"}, "acceptance"),
        (Sequoia, {"draft_cost": -0.1}, "draft_cost"),
        (DraftModel, {"branches": (0,)}, "branches"),
        (DraftModel, {"branches": (64, 64)}, "branches"),
        (DraftModel, {"branches": (2,), "tree_width": 2}, "branches"),
        (DraftModel, {"branches": (2,), "accept_rule": "rejection"}, "rejection"),
    ],
)
def test_bad_settings(kind: type[Method], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        kind(**settings)


@pytest.mark.parametrize(
    "method",
    [
        DraftModel(),
        DraftModel(tree_width=2),
        FIXED,
        *TREES,
        Staged(),
        VocabTrim(k=9),
        DraftModel(accept_rule="rejection"),
    ],
    ids=str,
)
def test_a_full_drafter_context_stops_its_own_row_only(method: Method) -> None:
    context = 16  # the prompts have 10, 1, 9 and 13 tokens, and get 16 more
    target = target_for("causal")
    drafter = ToyModel(like=target, noise=0.15, seed=1, max_positions=context)
    last: dict[int, int] = {}

    def watch(rows: Sequence[Row], outcome: Outcome) -> None:
        assert outcome.proposal is not None
        for row, tokens, drafted in zip(rows, outcome.emitted, outcome.proposal.length, strict=True):
            length = len(row.tokens) - len(tokens)
            assert drafted == 0 or length < context
            if drafted:
                last[row.key] = max(last.get(row.key, 0), length)

    rows, run = make_rows(), make_run(method, models={"draft": drafter})
    run.watch = watch
    drive(run, rows)
    assert last[rows[1].key] >= 10 > len(TOY_PROMPTS[1])  # long after the others had to stop
    assert [tuple(row.written) for row in rows] == list(reference("greedy"))
