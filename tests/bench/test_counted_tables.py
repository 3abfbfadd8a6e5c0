"""Tables of the docs that count, not time: dependent answers, trimmed heads, a drafter of another vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outpace.bench import BenchOptions, catalogue, dependent, run_catalogue, vocab_trim


def test_a_sudoku_pays_for_parallel_writing_and_a_copy_does_not() -> None:
    points = list(dependent.solved("stories-block", ["copy", "sudoku"], 12, [1, 4]))
    solved = {(point.set, point.settings["per_step"]): point.quality for point in points}
    assert solved["copy", 1] == solved["copy", 4] == 1
    assert solved["sudoku", 1] > solved["sudoku", 4]
    assert all(point.forwards < 0.5 * points[at - 1].forwards for at, point in enumerate(points) if at % 2)
    lines = dependent.table(points).splitlines()
    assert lines[0] == "| task | 1 per step | 4 per step |" and lines[2] == "| copy | 1.00 | 1.00 |"


def test_trimming_a_head_is_reported_per_size(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocab_trim, "_COUNTED", 48)
    assert vocab_trim.main(["stories", "--k", "16,1024,8192", "--prompts", "1", "--max-tokens", "32"]) == 0
    rows = [
        [float(cell.replace(",", "")) for cell in line.strip("| ").split("|")]
        for line in capsys.readouterr().out.splitlines()[2:]
    ]
    sizes, heads, read, lengths, speedups = zip(*rows, strict=True)
    assert sizes == (16, 1024, 8192)
    assert heads == (16 * 192, 1024 * 192, 8192 * 192)  # a width of 96, two bytes each
    assert read[2] - read[0] == heads[2] - heads[0] and read[2] > heads[2]
    assert lengths[0] < lengths[1] <= lengths[2] + 0.1
    assert speedups[1] > speedups[2]  # what a head of this size costs
    assert vocab_trim.main(["stories", "--k", "9000"]) == 2
    assert "vocabulary" in capsys.readouterr().err


def test_the_catalogue_drafts_across_vocabularies_with_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(catalogue, "method_names", lambda: ["autoregressive", "cross-vocab"])
    measure = catalogue.measure

    def watched(arms, *rest):  # type: ignore[no-untyped-def]
        names = {arm.settings.draft for arm in arms if arm.method == "cross-vocab"}
        seen.extend(json.loads((Path(name) / "config.json").read_text())["vocab_size"] for name in names)
        return measure(arms, *rest)

    monkeypatch.setattr(catalogue, "measure", watched)
    options = BenchOptions(
        prompts=("stories",), paths=("eager",), temperatures=(0.0,), num_prompts=1, max_tokens=16, repeats=1
    )
    document = run_catalogue(options).to_dict()
    assert seen == [8192 - 1500]
    assert "1500 of its words" in document["drafters"]["cross-vocab"]
    rows = {row["method"]: row for row in document["rows"]}
    assert rows["cross-vocab"]["exactness"]["equal"] == 1 and rows["cross-vocab"]["accepted_per_step"] > 0
