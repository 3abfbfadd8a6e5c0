"""The Python face as an editor and a notebook see it: typed arguments, and what a model and a result look like."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

import outpace
from outpace import LanguageModel, Sampling
from outpace.api.request import Request, RequestOptions
from outpace.sampling import SamplingOptions


@pytest.fixture(scope="module")
def lm(tiny: Path) -> LanguageModel:
    return outpace.load(tiny)


@pytest.mark.parametrize(
    ("made", "typed", "apart"), [(Sampling, SamplingOptions, set()), (Request, RequestOptions, {"num_samples"})]
)
def test_the_typed_arguments_are_the_fields(made: type, typed: type, apart: set[str]) -> None:
    declared = {field.name: str(field.type) for field in fields(made) if field.name not in apart}
    given = {name: kind.__forward_arg__ for name, kind in typed.__annotations__.items()}
    assert set(given) == set(declared)
    for name, kind in declared.items():
        if given[name] != "Any" and name != "models":  # a model may stand for its adapter
            assert {*kind.split(" | "), "None"} <= set(given[name].split(" | ")), name


def test_a_model_shows_what_it_is(lm: LanguageModel) -> None:
    shown = repr(lm)
    for word in ("parameters", "dtype", "device", "path", "context", "vocabulary", lm.name):
        assert word in shown
    assert all(len(line) < 120 for line in shown.splitlines()[1:])


def test_a_result_shows_what_it_came_to(lm: LanguageModel) -> None:
    result = lm.generate("the quick", max_tokens=60, method="prompt-lookup", ignore_eos=True)
    shown = repr(result)
    for word in ("finish   length", "60, ", "per second", "per step", "prompt-lookup (exact)"):
        assert word in shown
    assert max(map(len, shown.splitlines())) < 300
    assert result.accepted_per_step == result.usage.num_accepted / result.usage.num_steps
    assert result.to_dict()["guarantee"] == "exact"


def test_a_bare_model_shows_itself_too(lm: LanguageModel) -> None:
    assert "parameters" not in repr(LanguageModel(lm.target)) and "vocabulary" in repr(LanguageModel(lm.target))
