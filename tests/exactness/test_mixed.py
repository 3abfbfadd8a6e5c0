"""Rows of several methods, laws and seeds in one run: each writes what it writes alone, whoever stands beside it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.misfit import misfits
from outpace.methods.mixed import Mixed
from outpace.methods.registry import built_in_names, load_method
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.sampling import Sampling, row_key
from outpace.testing.spelling import respelled, toy_tokenizers
from outpace.testing.world import (
    PROMPTS,
    SETTINGS,
    drafter_for,
    drive,
    ends_under,
    make_run,
    target_for,
    with_stop,
)
from outpace.types import Guarantee, Wanted

TARGET = target_for("causal")


def methods() -> list[Method]:
    """Return every method that a causal model allows and whose rows do not depend on their neighbours."""
    found = []
    for name in built_in_names():
        method = load_method(name)().to_certify()
        if method.needs.attention == "causal" and not misfits(method, TARGET.capabilities):
            found.append(method)
    return found


METHODS = methods()
EXACT = [method for method in METHODS if method.guarantee is Guarantee.EXACT]


def wanted(method: Method) -> Wanted:
    attention = method.needs.attention
    roles = (*method.needs.models, *method.needs.optional_models)
    models = {role: drafter_for(method.needs.model_attention.get(role, attention)) for role in roles}
    if method.needs.has_text:
        models = {role: respelled(drafter) for role, drafter in models.items()}
    return Wanted(method, models, toy_tokenizers(method, TARGET, models))


WANTED = {method.name: wanted(method) for method in METHODS}


def make_row(method: Method, prompt: Sequence[int], law: str, seed: int, size: int, stop: str = "") -> Row:
    row = Row(list(prompt), len(prompt), row_key(seed, 0), size, ends_under(SETTINGS[law]))
    row.settings, row.wanted = SETTINGS[law], WANTED[method.name]
    return with_stop(row, stop) if stop else row


def alone(method: Method, given: tuple[Any, ...]) -> list[int]:
    """Return what a row writes by itself, in a run of its method and its law."""
    row = make_row(*given)
    settings, row.settings, row.wanted = row.settings or Sampling(), None, None
    drive(make_run(method, settings, target=TARGET, models=WANTED[method.name].models), [row])
    return row.written


def mixed_run(is_paged: bool = False) -> Run:
    pages = TARGET.new_pool(400, 16) if is_paged else None
    return Run(TARGET, Mixed(Autoregressive()), Sampling(), capacity=160, chunk=4, pages=pages)


def write_beside(run: Run, rows: Sequence[Row], chance: random.Random, budget: int | None) -> None:
    """Write rows that join, and now and then leave and join again, at random steps."""
    late = list(rows)
    for _ in range(10_000):
        while late and (not run.rows or chance.random() < 0.5):
            run.join([late.pop()], in_line=budget is not None)
        if len(run.rows) > 2 and chance.random() < 0.1:
            gone = chance.choice(run.rows)
            run.leave([gone])
            late.append(gone)
        if not run.rows and not late:
            return
        run.step(budget)
    raise AssertionError("It does not end.")


@pytest.mark.parametrize("is_paged", [False, True], ids=["slots", "pages"])
@pytest.mark.parametrize("budget", [None, 3])
@pytest.mark.parametrize("seed", range(2))
def test_every_mixture_writes_what_its_rows_write_alone(seed: int, budget: int | None, is_paged: bool) -> None:
    chance, rows, drawn = random.Random(seed), [], []
    for number, method in enumerate(chance.sample(EXACT, len(EXACT))):
        law, prompt = chance.choice(list(SETTINGS)), chance.choice(PROMPTS)
        stop = chance.choice(["", "", "dDeE", "cCbB"])
        drawn.append((method, prompt, law, number % 3, chance.randint(1, 20), stop))
    rows = [make_row(*given) for given in drawn]
    write_beside(mixed_run(is_paged), rows, chance, budget)
    for given, row in zip(drawn, rows, strict=True):
        assert row.written == alone(Autoregressive(), given), given
