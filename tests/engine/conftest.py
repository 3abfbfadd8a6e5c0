"""Engines of these tests compute in one thread each: teams of threads wait for each other where cores are few."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from outpace.run.threads import fixed


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with fixed(1):
        yield
