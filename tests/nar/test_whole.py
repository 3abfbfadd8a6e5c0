"""A rule over whole texts keeps the contract on a network of its kind, and is refused elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
from torch import Tensor

from outpace.errors import CapabilityError
from outpace.methods.misfit import check_fit
from outpace.methods.whole.base import WholeMethod
from outpace.models.nar.model import NarModel, outputs_of
from outpace.testing.checks import run_contract
from outpace.testing.one_pass import ToyOnePass, toy_network
from outpace.types import Context


@dataclass(frozen=True)
class Backwards(WholeMethod):
    """Writes the likeliest text from its end to its beginning."""

    name: ClassVar[str] = "backwards"
    family: ClassVar[str] = "parallel"
    summary: ClassVar[str] = "For tests."
    kinds: ClassVar[tuple[str, ...]] = ("ctc",)

    def choose(self, model: NarModel, context: Context) -> Sequence[Tensor]:
        assert context.cache is not None
        is_place, outputs = outputs_of(context.cache)
        context.cache.counter.add(is_place.numel(), 1)
        return [model.ended(law.flip(0)) for law in model.net.laws(outputs, is_place)]


def test_the_contract_holds() -> None:
    failures = run_contract(Backwards)
    assert not failures, failures


def test_it_fits_its_kind_alone() -> None:
    check_fit(Backwards(), toy_network("ctc").capabilities)
    with pytest.raises(CapabilityError, match="one-pass network of the kind ctc"):
        check_fit(Backwards(), ToyOnePass().capabilities)
