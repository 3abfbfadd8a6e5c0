"""How much is read beside decoding follows from what steps cost."""

from __future__ import annotations

import pytest

from outpace.engine.pace import Pace


@pytest.mark.parametrize(("plain_s", "token_s", "budget"), [(0.010, 0.0001, 150), (0.010, 0.01, 16), (1.0, 1e-4, 1024)])
def test_a_step_that_reads_takes_some_times_a_plain_one(plain_s: float, token_s: float, budget: int) -> None:
    pace = Pace()
    assert pace.budget(0) == 1024 and pace.budget(4) == 64  # nothing is known yet
    for _ in range(50):
        pace.add(plain_s, 4, 0)
        pace.add(plain_s + token_s * 64, 4, 64)
        pace.add(token_s * 256, 0, 256)
    assert pace.budget(4) == budget and pace.budget(0) == 1024


def test_a_budget_that_was_asked_for_is_kept() -> None:
    pace = Pace(40)
    pace.add(1.0, 1, 0)
    assert pace.budget(0) == pace.budget(8) == 40
