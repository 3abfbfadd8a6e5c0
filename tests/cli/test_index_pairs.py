"""`outpace index` on a translation memory, and drafts from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests_cli import Command

pytest.importorskip("transformers")
READ = ["Ein Mann fährt Fahrrad.", "Die Katze schläft auf dem Sofa.", "", "Tom hat ein Auto."]


def test_a_translation_memory_drafts_what_was_written_for_a_source(cli: Command, tmp_path: Path) -> None:
    words = ("generate", READ[1], "--model", "translate", "--json", "--max-tokens", 30)
    plain = json.loads(cli(*words).out)
    written = ["A man rides a bicycle.", plain["text"], "Nothing.", "Tom has a car."]
    (tmp_path / "read.txt").write_text("\n".join(READ) + "\n", encoding="utf-8")
    (tmp_path / "written.txt").write_text("\n".join(written) + "\n", encoding="utf-8")
    made = {}
    for name, more in (("pairs", ("--sources", tmp_path / "read.txt")), ("targets", ())):
        out = tmp_path / f"{name}.outpace"
        ended = cli("index", tmp_path / "written.txt", *more, "--model", "translate", "--out", out, "--json")
        assert ended.status == 0, ended.err
        made[name] = json.loads(ended.out)
        ours = json.loads(cli(*words, "--method", "retrieval", "-o", f"index={out}", "-o", "budget=10").out)
        assert ours["tokens"] == plain["tokens"]
        made[name]["steps"] = ours["usage"]["num_steps"]
    # A pair whose source is empty says nothing; a line of its own does.
    assert [made[name]["texts"] for name in ("pairs", "targets")] == [3, 4]
    # With its source known, the text is found before its first word is written; else four beginnings share the tree.
    assert made["pairs"]["steps"] == -(-len(plain["tokens"]) // 11) < made["targets"]["steps"] < len(plain["tokens"])


def test_what_does_not_go_together_is_one_sentence(cli: Command, tmp_path: Path) -> None:
    read, written, out = tmp_path / "read.txt", tmp_path / "written.txt", tmp_path / "out"
    read.write_text("Eins.\nZwei.\n", encoding="utf-8")
    written.write_text("One.\nTwo.\nThree.\n", encoding="utf-8")
    given = ("index", written, "--sources", read, "--out", out)
    cases = [
        ((*given, "--model", "translate"), "line 3 of the corpus has nothing beside it in the sources"),
        (("index", read, "--sources", written, "--out", out, "--model", "translate"), "line 3 of the sources"),
        (given, "has no encoder"),
    ]
    for words, reason in cases:
        ended = cli(*words)
        assert ended.status == 2 and reason in ended.err, (words, ended.err)
        assert len(ended.err.strip().splitlines()) == 2 and not out.exists()


def test_what_speaks_another_vocabulary_is_one_sentence(cli: Command, tmp_path: Path) -> None:
    written, out = tmp_path / "written.txt", tmp_path / "stories.outpace"
    written.write_text("One day, Tom had a car.\n", encoding="utf-8")
    assert cli("index", written, "--out", out).status == 0  # with the tokenizer of the stories
    cases = [
        (("retrieval", "-o", f"index={out}"), "another tokenizer"),
        (("generalised-aggressive", "-o", "draft=stories"), "the target 6144"),
        (("draft-model", "-o", "draft=stories"), "the target 6144"),
        (("blockwise",), "No drafter of the kind 'blockwise'"),
    ]
    for words, reason in cases:
        ended = cli("generate", READ[0], "--model", "translate", "--method", *words)
        assert ended.status == 2 and reason in ended.err, (words, ended.err)
        assert len(ended.err.strip().splitlines()) == 2
