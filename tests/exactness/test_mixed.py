"""Rows of several methods, laws and seeds in one run: each writes what it writes alone, whoever stands beside it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from outpace.errors import ConfigError, NoPages
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.misfit import misfits
from outpace.methods.mixed import Mixed
from outpace.methods.registry import built_in_names, load_method
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.sampling import Sampling, row_key
from outpace.testing.spelling import toy_tokenizers
from outpace.testing.world import (
    PROMPTS,
    SETTINGS,
    Watched,
    drive,
    ends_under,
    make_run,
    partners_for,
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
        fits = method.needs.attention == "causal" and not misfits(method, TARGET.capabilities)
        if fits and not method.needs.has_forks:  # rows that fork have runs of their own
            found.append(method)
    return found


METHODS = methods()


def wanted(method: Method) -> Wanted:
    models = partners_for(method, TARGET)
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
            if gone.wanted is not None and not gone.wanted.method.is_resumable:
                continue
            run.leave([gone])
            late.append(gone)
        if not run.rows and not late:
            return
        run.step(budget)
    raise AssertionError("It does not end.")


ORDER = random.Random(5).sample(METHODS, len(METHODS))


@pytest.mark.parametrize("number", range(4))
def test_every_mixture_writes_what_its_rows_write_alone(number: int) -> None:
    """All methods in four mixtures: on slots and on pages, prompts read before steps or beside them."""
    chance, drawn = random.Random(number), []
    for at, method in enumerate(ORDER[number::4]):
        law, prompt = chance.choice(list(SETTINGS)), chance.choice(PROMPTS)
        stop = chance.choice(["", "", "dDeE", "cCbB"])
        drawn.append((method, prompt, law, at % 3, chance.randint(4, 16), stop))
    rows = [make_row(*given) for given in drawn]
    write_beside(mixed_run(is_paged=number > 1), rows, chance, [None, 3][number % 2])
    for given, row in zip(drawn, rows, strict=True):
        is_exact = given[0].guarantee is Guarantee.EXACT
        assert row.written == alone(Autoregressive() if is_exact else given[0], given), given


def test_rows_of_several_laws_share_the_choice_of_a_drafter() -> None:
    method = next(method for method in METHODS if method.name == "auto")
    given = [(method, PROMPTS[i % 4], law, i % 3, 24, "") for i, law in enumerate(SETTINGS)]
    rows, run = [make_row(*one) for one in given], mixed_run()
    run.join(rows)
    drafters: set[str] = set()
    while run.rows:
        assert len(run.batch.state.groups) == 1
        run.step()
        drafters |= {name for row in rows for name in row.drafters}
    assert len(drafters) > 2  # none, and two at least
    for one, row in zip(given, rows, strict=True):
        assert row.written == alone(Autoregressive(), one), one


@pytest.mark.parametrize("method", ["suffix", "draft-model"])
def test_each_row_has_records_and_counts_of_its_own(method: str) -> None:
    given = [(WANTED[name].method, PROMPTS[0], "top-p", 1, 12, "") for name in (method, "autoregressive", "jacobi")]
    rows, run = [make_row(*one) for one in given], mixed_run()
    rows[0].record, rows[0].num_top, rows[0].steps = ("log_probs", "margins"), 3, []
    drive(run, rows)
    lone = make_row(*given[0])
    lone.wanted = lone.settings = None
    drive(make_run(Autoregressive(), SETTINGS["top-p"], target=TARGET, record=("log_probs", "margins")), [lone])
    assert rows[0].log_probs == pytest.approx(lone.log_probs, abs=1e-9)
    assert rows[0].margins == pytest.approx(lone.margins, abs=1e-9)
    assert [len(top) for top in rows[0].top_log_probs] == [3] * 12 and not rows[1].log_probs
    steps = rows[0].steps or []
    assert rows[1].steps is None and sum(kept for _, kept in steps) == rows[0].usage.num_accepted == rows[
        0
    ].drafters.count(method)
    assert sum(drafts for drafts, _ in steps) == rows[0].usage.num_proposed
    assert [name for name in rows[0].drafters if name] == [method] * rows[0].sources.count("draft")


def test_what_cannot_be_mixed_is_named() -> None:
    with pytest.raises(ConfigError, match="of its own"):
        make_run(Autoregressive(), target=TARGET).join([make_row(METHODS[0], PROMPTS[0], "greedy", 0, 4)])


@pytest.mark.parametrize("is_paged", [False, True], ids=["slots", "pages"])
def test_prompts_are_read_within_the_budget_in_the_forward_of_others(is_paged: bool) -> None:
    run, seen, plain = mixed_run(is_paged), Watched(TARGET), METHODS[0]
    run.target = seen
    first = make_row(plain, [5], "greedy", 0, 30)
    others = [make_row(plain, [at] * 9, "greedy", 0, 3) for at in range(3)]
    run.join([first])
    run.step(6)
    for other in others:
        run.join([other], in_line=True)
    read = []
    while not others[-1].written:
        calls, before = seen.calls.num, len(first.written)
        run.step(6)
        assert run.last is not None and seen.calls.num == calls + 1 and len(first.written) == before + 1
        read.append(run.last.read)
    assert sum(read) == 3 * 8 and max(read) == 4 and read[-1] == 0  # chunks of 4 are read whole


def test_where_pages_run_out_nothing_is_lost() -> None:
    """A step that has no pages changes nothing; a row that gave its own up goes on where it stood."""
    chance, methods = (
        random.Random(3),
        [WANTED[name].method for name in ("draft-model", "layer-skip", "suffix", "auto")],
    )
    given = [(methods[at % 4], PROMPTS[0], law, at, 30, "") for at, law in enumerate(list(SETTINGS)[:8])]
    run, rows = mixed_run(), [make_row(*one) for one in given]
    run.pages = TARGET.new_pool(9, 16)
    late, refused = list(rows), 0
    for _ in range(10_000):
        if late and len(run.rows) < 6 and chance.random() < 0.5:
            run.join([late.pop()], in_line=True)
        if not run.rows:
            if not late:
                break
            continue
        before = [list(row.tokens) for row in run.rows]
        try:
            run.step(16)
        except NoPages:
            refused += 1
            assert [row.tokens for row in run.rows] == before
            late.append(run.rows[-1])
            run.leave(late[-1:])
    assert refused > 3 and run.pages is not None and run.pages.num_free == 9
    for one, row in zip(given, rows, strict=True):
        assert row.written == alone(Autoregressive(), one), one
