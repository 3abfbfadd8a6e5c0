"""Deliberate faults still apply to the code and are caught; `make mutants` runs every check of all of them."""

from __future__ import annotations

import pytest

from outpace.testing.mutants import CANVAS_MUTANTS, MUTANTS, Mutant, catch

# Two that cheap checks catch; all are caught by `make mutants`, which the gate runs too.
QUICK = ("walk-forgets-path", "padding-accepted")


@pytest.mark.parametrize("mutant", [*MUTANTS, *CANVAS_MUTANTS], ids=lambda mutant: mutant.name)
def test_the_fault_applies_to_the_code_as_it_is(mutant: Mutant) -> None:
    with mutant.applied():
        pass


@pytest.mark.parametrize("name", QUICK)
def test_caught(name: str) -> None:
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == name)
    assert catch(mutant), f"Nothing noticed that {mutant.fault}."


def test_a_mutant_of_code_that_moved_says_so() -> None:
    gone = Mutant("gone", "nothing", "row:Row.push", "this is not in the source", "")
    with pytest.raises(LookupError, match="no longer applies"), gone.applied():
        pass


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 20 and len(CANVAS_MUTANTS) >= 20
