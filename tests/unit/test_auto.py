"""The automatic method: exact whatever it chooses, its choices to be read, its mistakes named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

import outpace
from outpace.draft.recycling import RecyclingMemory
from outpace.errors import ConfigError
from outpace.methods.auto import Auto
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.idle import Idle
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.run.row import Row
from outpace.sampling import Sampling
from outpace.testing import check_method
from outpace.testing.world import PeriodicModel, make_rows, make_run
from outpace.types import Context, Outcome

LOOP = "one two three four five six. " * 8


@pytest.mark.parametrize(
    "method", [Auto(arms="prompt-lookup"), Auto(arms="jacobi,layer-skip"), Auto(is_timed=False)], ids=str
)
def test_contract(method: Auto) -> None:
    check_method(method, every=3)


def test_the_choice_is_exact_and_told() -> None:
    lm = outpace.load("stories", dtype="float64")
    origins: Counter[str] = Counter()
    notes = set()

    def watch(rows: Sequence[Row], outcome: Outcome) -> None:
        assert outcome.proposal is not None and isinstance(outcome.proposal.origin, str)
        origins[outcome.proposal.origin] += 1
        notes.add(outcome.proposal.note.split(":")[0])

    for settings in ({}, {"temperature": 0.8, "seed": 4}):
        plain = lm.generate(LOOP, max_tokens=48, ignore_eos=True, **settings)
        auto = lm.generate(LOOP, max_tokens=48, ignore_eos=True, method=Auto(explore=0.2), watch=watch, **settings)
        assert auto.tokens == plain.tokens
    assert len(origins) >= 2 and "plain" in origins
    assert {"trial", "best rate"} <= notes


def test_a_copying_text_is_drafted_after_a_while() -> None:
    target = PeriodicModel(6)
    rows = make_rows([[0, 1, 2, 3, 4, 5] * 3], 60)
    run = make_run(Auto(arms="prompt-lookup", explore=0.3, is_timed=False), Sampling(), target=target)
    run.join(rows)
    while run.rows:
        run.step()
    assert rows[0].usage.num_steps < 40 and rows[0].usage.num_accepted > 20


def test_no_drafter_is_no_mistake() -> None:
    lm = outpace.load("stories-draft")
    assert (
        lm.generate("Once upon a time", max_tokens=8, method="auto").tokens
        == lm.generate("Once upon a time", max_tokens=8).tokens
    )


def test_mistakes_are_named() -> None:
    for settings, message in (
        ({"arms": "masked-diffusion"}, "not an exact drafter"),
        ({"arms": "auto"}, "arm of itself"),
        ({"arms": "nonsense"}, "no method"),
        ({"explore": 1.0}, "explore"),
    ):
        with pytest.raises(ConfigError, match=message):
            Auto(**settings)  # type: ignore[arg-type]


def test_an_idle_drafter_is_not_begun() -> None:
    started: list[str] = []

    class Counted(PromptLookup):
        def start(self, context: Context) -> object:
            started.append(self.name)
            return super().start(context)

    rows = make_rows([[1, 2, 3], [4, 5]], 8)
    run = make_run(Autoregressive(), target=PeriodicModel(6))
    run.join(rows)
    context = Context(run.target, [row.tokens for row in rows], 96, run.batch.sampler, {}, run.counters)
    idle = Idle((Counted(),), context)
    assert not started and idle.lag("prompt-lookup") == 5
    view = run.batch.view(0, None)
    first = idle.awake("prompt-lookup", view)
    assert idle.awake("prompt-lookup", view) is first and started == ["prompt-lookup"]
    rows[0].tokens.append(9)
    assert idle.lag("prompt-lookup") == 1
    fresh = Idle((Counted(),), Context(run.target, [[7, 8]], 96, run.batch.sampler.rows([0]), {}, run.counters))
    idle.join([idle, fresh])  # rows that join a drafter at work begin with it
    assert len(started) == 2 and idle.given == [3, 2, 2]
    assert idle.rows([2, 0]).given == [2, 3]


def test_memory_of_a_wrong_kind_is_named_before_a_text_begins() -> None:
    lm = outpace.load("stories-draft")
    with pytest.raises(ConfigError, match="cannot use a memory"):
        lm.generate("Once", max_tokens=2, method="auto", memory=RecyclingMemory())
