"""Every deliberate fault is caught; the code as it is fails nothing."""

from __future__ import annotations

import pytest

from outpace.testing.mutants import MUTANTS, Mutant, catch


def test_nothing_fails_without_a_fault() -> None:
    assert catch(None) == []


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_caught(mutant: Mutant) -> None:
    assert catch(mutant), f"Nothing noticed that {mutant.fault}."


def test_a_mutant_of_code_that_moved_says_so() -> None:
    gone = Mutant("gone", "nothing", "row:Row.push", "this is not in the source", "")
    with pytest.raises(LookupError, match="no longer applies"), gone.applied():
        pass


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 20 and len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
