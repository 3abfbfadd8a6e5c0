"""Deliberate faults still apply to the code and are caught; `make mutants` runs every check of all of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from outpace.run.row import Row
from outpace.testing.faults import Change, seeing, stand_in, text
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


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("run.row:Row.push", text("this is not in the source", "")),
        ("run.row:Row.push", lambda push: seeing(push, nowhere=None)),
        ("run.row:Row.gone", lambda push: push),
        ("run.gone:push", lambda push: push),
    ],
)
def test_a_mutant_of_code_that_moved_says_so(where: str, change: Change) -> None:
    gone = Mutant("gone", "nothing", where, change)
    with pytest.raises(LookupError, match="no longer applies"), gone.applied():
        pass


def test_a_fault_that_breaks_by_itself_is_not_caught_but_told() -> None:
    broken = Mutant("broken", "nothing", "sampling.noise:uniform", lambda uniform: lambda: uniform())
    with pytest.raises(LookupError, match="it broke with TypeError"):
        catch(broken)


def test_a_fault_leaves_nothing_behind() -> None:
    before = Row.push
    with Mutant("fault", "nothing", "run.row:Row.push", lambda push: lambda self, token: False).applied():
        assert Row.push is not before
    assert Row.push is before


def test_a_stand_in_answers_in_part_otherwise_and_passes_on_what_is_assigned() -> None:
    whole = SimpleNamespace(kept=1, changed=2, other=3)
    other = stand_in(whole, keeps=("kept",), changed=20)
    other.kept, other.other = 5, 6
    assert (other.kept, other.changed, other.other) == (1, 20, 6)
    assert vars(whole) == {"kept": 1, "changed": 2, "other": 6}


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 20 and len(CANVAS_MUTANTS) >= 20
