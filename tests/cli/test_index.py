"""`outpace index` as a user runs it, and its datastore in `outpace generate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests_cli import Command

STORY = "Once upon a time, there was a big dragon named Tim. Tim liked to eat blue cake with his friend Sue.\n"


def test_a_corpus_is_indexed_and_drafted_from(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text(STORY * 3, encoding="utf-8")
    (tmp_path / "in/picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "more.jsonl").write_text(json.dumps({"text": "One day, a cat."}), encoding="utf-8")
    out = tmp_path / "some.outpace"
    ended = cli("index", tmp_path / "in", tmp_path / "more.jsonl", "--out", out, "--json")
    assert ended.status == 0 and "Skipped" in ended.err and "picture.png" in ended.err
    found = json.loads(ended.out)
    assert found["texts"] == 2 and found["bytes"] == out.stat().st_size
    assert found["bytes_per_token"] == pytest.approx(found["bytes"] / found["tokens"]) and found["mb_per_s"] > 0

    words = ("generate", "Once upon a time", "--max-tokens", 12, "--json")
    ours = json.loads(cli(*words, "--method", "retrieval", "-o", f"index={out}").out)
    plain = json.loads(cli(*words).out)
    assert ours["tokens"] == plain["tokens"] and ours["usage"]["num_accepted"] > 0


def test_an_existing_file_is_kept_unless_forced(cli: Command, tmp_path: Path) -> None:
    corpus, out = tmp_path / "a.txt", tmp_path / "out"
    corpus.write_text(STORY, encoding="utf-8")
    out.write_text("precious", encoding="utf-8")
    ended = cli("index", corpus, "--out", out)
    assert (ended.status, out.read_text(encoding="utf-8")) == (2, "precious") and "--force" in ended.err
    ended = cli("index", corpus, "--out", out, "--force")
    assert ended.status == 0 and "MB/s" in ended.out and "bytes per token" in ended.out
    assert out.read_bytes()[:7] == b"OUTPACE"


def test_what_cannot_be_indexed_is_one_sentence(cli: Command, tmp_path: Path) -> None:
    empty, out = tmp_path / "empty.txt", tmp_path / "out"
    empty.write_text("", encoding="utf-8")
    cases = [
        (("index", tmp_path / "missing", "--out", out), "no file or folder"),
        (("index", empty, "--out", out), "holds no text"),
        (("index", empty, "--out", tmp_path, "--force"), "is a folder"),
        (("index", empty, "--out", out, "--model", "nobody"), "nobody"),
        (("generate", "a", "--method", "retrieval", "-o", f"index={out}"), "There is no datastore"),
        (("generate", "a", "--method", "retrieval", "-o", f"index={empty}"), "is no datastore"),
    ]
    for words, reason in cases:
        ended = cli(*words)
        assert ended.status == 2 and reason in ended.err, (words, ended.err)
        assert len(ended.err.strip().splitlines()) == 2 and not out.exists()
