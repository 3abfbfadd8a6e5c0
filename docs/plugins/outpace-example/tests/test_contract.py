"""The example method fulfils the contract of every method, and is right where it should be."""

import pytest
from outpace_example import RepeatLast

from outpace.testing import check_method
from outpace.testing.world import PeriodicModel, make_rows, write


@pytest.mark.parametrize("method", [RepeatLast(), RepeatLast(period=1, draft_len=1)])
def test_contract(method: RepeatLast) -> None:
    check_method(method)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="period"):
        RepeatLast(period=0)


@pytest.mark.parametrize(("period", "is_right"), [(6, True), (5, False)])
def test_drafts_are_kept_where_the_text_has_that_period(period: int, is_right: bool) -> None:
    """Exactness alone would not notice a drafter that is never right."""
    [row] = write(RepeatLast(period=period), rows=make_rows([range(6)]), target=PeriodicModel(6))
    assert row.usage.num_proposed > 0
    assert row.usage.num_accepted == (row.usage.num_proposed if is_right else 0)
