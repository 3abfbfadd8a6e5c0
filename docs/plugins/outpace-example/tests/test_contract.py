"""The example method fulfils the contract of every method, and is right where it should be."""

import pytest
from outpace_example import RepeatLast

from outpace.testing import check_method


@pytest.mark.parametrize("method", [RepeatLast(), RepeatLast(period=1, draft_len=1)])
def test_contract(method: RepeatLast) -> None:
    check_method(method)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="period"):
        RepeatLast(period=0)
