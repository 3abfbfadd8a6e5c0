"""A known answer for runs of several methods and laws: each row writes what it writes alone."""

from __future__ import annotations

from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.mixed import Mixed
from outpace.methods.parallel.jacobi import Jacobi
from outpace.methods.speculative.draft_model import DraftModel
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.methods.speculative.token_recycling import TokenRecycling
from outpace.run.row import Row
from outpace.testing.world import PROMPTS, SETTINGS, drafter_for, make_rows, make_run, target_for, write
from outpace.types import Wanted

__all__ = ["check_mixture"]

# A tree beside chains, methods that match drafts together and those that decide by themselves, one of them twice.
METHODS: tuple[Method, ...] = (
    *(TokenRecycling(nodes=6, candidates=3), DraftModel(draft_len=4), PromptLookup(draft_len=3), Autoregressive()),
    *(Jacobi(window=4), DraftModel(draft_len=4), PromptLookup(draft_len=3)),
)
SIZES = (20, 20, 9, 10, 8, 12, 9)
LAWS = ("greedy", "temperature 0.7", "temperature 1.3", "top-k", "repetition penalty", "temperature 0.7", "logit bias")


def check_mixture() -> None:
    """Rows of other methods and laws, which join and leave while prompts are read beside them, change no text."""
    target, models = target_for("causal"), {"draft": drafter_for("causal")}
    prompts = [PROMPTS[at % len(PROMPTS)] for at in range(len(METHODS))]
    for is_paged in (False, True):
        rows = make_rows(prompts)
        for row, method, law, size in zip(rows, METHODS, LAWS, SIZES, strict=True):
            row.settings, row.wanted, row.max_tokens = SETTINGS[law], Wanted(method, models), size
        run = make_run(Mixed(Autoregressive()), target=target, models={})
        run.pages = target.new_pool(100, 16) if is_paged else None
        run.join(rows[:2])
        for row in rows[2:]:
            run.step(5)
            run.join([row], in_line=True)
        gone = run.rows[0]
        run.leave([gone])
        run.step(5)
        run.join([gone], in_line=True)
        while run.rows:
            run.step(5)
        _compare(rows, prompts)


def _compare(rows: list[Row], prompts: list[tuple[int, ...]]) -> None:
    for number, (row, law) in enumerate(zip(rows, LAWS, strict=True)):
        alone = make_rows(prompts)[number]
        alone.max_tokens = row.max_tokens
        (plain,) = write(Autoregressive(), SETTINGS[law], [alone])
        told = f"A row by {METHODS[number].name} at {law!r} depends on its neighbours"
        assert row.written == plain.written, f"{told}: {row.written}, not {plain.written}."
        assert not row.notes, f"{told}: {row.notes}."
