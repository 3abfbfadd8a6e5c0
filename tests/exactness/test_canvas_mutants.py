"""What must notice a fault in canvases fails nothing without one; `make mutants` plants the faults."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outpace.testing.canvas_answers import canvas_answers
from outpace.testing.mutants import CANVAS_MUTANTS, MUTANTS, catch


@pytest.mark.parametrize("check", canvas_answers(), ids=lambda check: check.__name__)
def test_nothing_fails_without_a_fault(check: Callable[[], None]) -> None:
    check()


def test_a_fault_is_caught() -> None:
    mutant = next(mutant for mutant in CANVAS_MUTANTS if mutant.name == "block-never-closed")
    assert catch(mutant), f"Nothing noticed that {mutant.fault}."


def test_names_differ() -> None:
    assert len({mutant.name for mutant in (*MUTANTS, *CANVAS_MUTANTS)}) == len(MUTANTS) + len(CANVAS_MUTANTS)
