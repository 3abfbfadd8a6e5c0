from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from outpace.bench import BenchOptions, catalogue, run_catalogue
from outpace.bench.catalogue import candidates
from outpace.methods.registry import method_names

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FIGURES", tmp_path)
    return module


def test_every_registered_method_is_a_candidate_or_left_out_with_a_reason() -> None:
    names, skipped = candidates()
    assert names[0] == "autoregressive"
    assert sorted([*names, *(item.name for item in skipped)]) == sorted(method_names())
    assert "masked-diffusion" in {item.name for item in skipped}
    assert all(item.reason for item in skipped)


def test_figures_reach_the_catalogue_page(
    tiny: Path, tmp_path: Path, hooks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "method_names", lambda: ["autoregressive", "prompt-lookup", "draft-model"])
    file = tmp_path / "catalogue.json"
    options = BenchOptions(
        model=str(tiny),
        prompts=("copy",),
        paths=("eager",),
        temperatures=(0.0, 0.7),
        num_prompts=1,
        max_tokens=8,
        repeats=1,
        json=file,
    )
    report = run_catalogue(options)
    document = json.loads(file.read_text())
    assert document == json.loads(json.dumps(report.to_dict()))
    assert {row["method"] for row in document["rows"]} == {"autoregressive", "prompt-lookup"}
    assert all(row["exactness"]["equal"] == 1 for row in document["rows"])
    plain = next(row for row in document["rows"] if row["method"] == "autoregressive")
    assert (plain["accepted_per_step"], plain["tokens_per_forward"]) == (0, 1)
    # No drafter is known for a model of one's own.
    assert [item["name"] for item in document["skipped"]] == ["draft-model"]
    row = next(row for row in document["rows"] if row["method"] == "prompt-lookup" and row["temperature"] == 0)
    page = hooks.catalogue()
    section = page[page.index("## prompt-lookup") :].partition("\n## ")[0]
    line = next(line for line in section.splitlines() if line.startswith("| copy, greedy |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:3] == [f"{row['accepted_per_step']:.2f}", f"{row['tokens_per_forward']:.2f}"]
    assert cells[3].startswith(f"{row['ratio_plain']['median']:.2f} (")
    assert "Not measured: " in page[page.index("## draft-model") :].partition("\n## ")[0]


def test_the_page_builds_without_figures(hooks: ModuleType) -> None:
    assert "## prompt-lookup" in hooks.catalogue()
    assert "x plain" not in hooks.catalogue()
