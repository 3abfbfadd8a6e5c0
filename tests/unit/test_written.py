"""Texts that a parent writes for distillation: where they begin, how a run goes on, and which are left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import outpace
from outpace.train import written
from outpace.train.sources import MIXED_SOURCES, SOURCES, WRITTEN

STORY = "Tom had a very small red ball that he liked. He threw it far. It was gone! He cried. Then it came back. End.\n"


class FakeSource:
    """One story."""

    def read(self, data: Path) -> Iterator[str]:
        yield STORY


def test_beginnings_end_with_sentences(tmp_path: Path) -> None:
    found = list(written.beginnings(FakeSource(), tmp_path, 3))  # type: ignore[arg-type]
    assert len(found) == len(set(found)) == 3
    assert all(STORY.startswith(text) and text[-1] in ".!" and len(text) >= 40 for text in found)


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    lm = outpace.load("stories")
    prompts = [f"Once upon a time there were {count} cats." for count in ("two", "three", "four", "five")]
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    assert written.write_texts(lm, prompts, whole, max_tokens=8, rows=2) > 0
    lines = whole.read_text().splitlines()
    assert len(lines) == 4 and all(json.loads(line)["text"].startswith("Once upon") for line in lines)
    parts.write_text("\n".join(lines[:2]) + "\n")
    written.write_texts(lm, prompts, parts, max_tokens=8, rows=2)
    assert parts.read_text() == whole.read_text()
    assert written.write_texts(lm, prompts, parts, max_tokens=8, rows=2) == 0


def test_loops_are_left_out_and_short_texts_are_joined(tmp_path: Path) -> None:
    rows = [{"text": "A dog ran. It sat. And th", "is_whole": False}] * 6
    rows += [{"text": "They slept.", "is_whole": True}, {"text": "a b c d e f " * 3, "is_whole": True}]
    file = tmp_path / WRITTEN
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = next(source for source in MIXED_SOURCES if source.name == "stories-written")
    assert list(source.read(tmp_path)) == ["\n\n".join(["A dog ran. It sat."] * 6) + "\n", "They slept.\n"]


def test_shares_sum_to_one() -> None:
    assert sum(source.weight for source in MIXED_SOURCES) == pytest.approx(1)
    assert {source.name for source in SOURCES} < {source.name for source in MIXED_SOURCES}
