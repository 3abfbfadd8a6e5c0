"""Every deliberate fault in what canvases are made of is caught; the code as it is fails nothing."""

from __future__ import annotations

import pytest

from outpace.testing.canvas_answers import canvas_answers
from outpace.testing.mutants import CANVAS_MUTANTS, MUTANTS, Mutant, catch


@pytest.mark.parametrize("check", canvas_answers(), ids=lambda check: check.__name__)
def test_nothing_fails_without_a_fault(check: object) -> None:
    assert callable(check)
    check()


@pytest.mark.parametrize("mutant", CANVAS_MUTANTS, ids=lambda mutant: mutant.name)
def test_caught(mutant: Mutant) -> None:
    assert catch(mutant), f"Nothing noticed that {mutant.fault}."


def test_names_differ() -> None:
    assert len({mutant.name for mutant in (*MUTANTS, *CANVAS_MUTANTS)}) == len(MUTANTS) + len(CANVAS_MUTANTS)
