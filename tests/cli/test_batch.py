"""`outpace generate --batch`: what --json prints, a line each; broken runs go on; bad lines are named by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests_cli import Command

PROMPTS = ["the quick brown fox", "the lazy dog é", "and the fox sleeps"]


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Three prompts, an empty line between them."""
    lines = [json.dumps({"prompt": PROMPTS[0], "id": "a"}), "", *(json.dumps({"text": text}) for text in PROMPTS[1:])]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "in.jsonl"


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def without(record: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the clock, or on who wrote beside it."""
    return {key: value for key, value in record.items() if key not in ("timing", "usage", "line", "id")}


def test_each_line_is_what_json_prints(cli: Command, tiny: Path, given: Path, tmp_path: Path) -> None:
    law = ["--model", tiny, "--max-tokens", 9, "--temperature", 0.7, "--seed", 3, "--dtype", "float64"]
    ended = cli("generate", "--batch", given, "--out", tmp_path / "out.jsonl", *law)
    assert (ended.status, ended.out) == (0, "") and "3 of 3 prompts done" in ended.err
    found = records((tmp_path / "out.jsonl").read_text())
    assert [(one["line"], one.get("id")) for one in found] == [(1, "a"), (3, None), (4, None)]
    for one, prompt in zip(found, PROMPTS, strict=True):
        alone = json.loads(cli("generate", prompt, *law, "--json").out)
        assert without(one) == without(alone) | {"margins": pytest.approx(alone["margins"])}


def test_plain_prompts_go_to_standard_output(cli: Command, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join(PROMPTS))
    ended = cli("generate", "--batch", tmp_path / "in.txt", "--model", tiny, "--max-tokens", 2, "--num-samples", 2)
    assert [(one["line"], one["sample"]) for one in records(ended.out)] == [(n, s) for n in (1, 2, 3) for s in (0, 1)]


def test_a_run_that_broke_off_goes_on(cli: Command, tiny: Path, given: Path, tmp_path: Path) -> None:
    out, arguments = tmp_path / "out.jsonl", ["--model", tiny, "--max-tokens", 4, "--batch-size", 2]
    cli("generate", "--batch", given, "--out", out, *arguments)
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    out.write_text(lines[0] + lines[1][:50])
    ended = cli("generate", "--batch", given, "--out", out, *arguments)
    assert ended.status == 0 and "1 of 3 prompts were done before" in ended.err
    assert out.read_text().startswith(lines[0])
    assert [one["tokens"] for one in records(out.read_text())] == [one["tokens"] for one in records(whole)]
    done = out.read_text()
    assert cli("generate", "--batch", given, "--out", out, *arguments).status == 0
    assert out.read_text() == done
    given.write_text(json.dumps({"prompt": "another"}))
    ended = cli("generate", "--batch", given, "--out", out, *arguments)
    assert ended.status == 2 and "Lines 1, 2, 3 of" in ended.err and "not from this batch" in ended.err
    assert out.read_text() == done


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "x"}\n{}\n\nx\n["y"]\n{"prompt": ""}\n{"prompt": 3}\n', "Lines 2, 4, 5, 6, 7 of"),
        ('{"prompt": "\\ud800"}\n', "Line 1 of"),
        ("\n\n", "holds no prompt"),
    ],
)
def test_bad_lines_are_named_before_weights_load(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setattr("outpace.api.engine.load", lambda *_, **__: pytest.fail("weights were loaded"))
    (tmp_path / "in.jsonl").write_text(text)
    ended = cli("generate", "--batch", tmp_path / "in.jsonl")
    assert (ended.status, ended.out) == (2, "") and message in ended.err


def test_a_line_that_is_too_long_is_named(cli: Command, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("the fox\n" + "x" * 600)
    ended = cli("generate", "--batch", tmp_path / "in.txt", "--model", tiny)
    assert (ended.status, ended.out) == (2, "") and "Line 2 of" in ended.err and "context of 512" in ended.err


def test_messages_are_a_chat(cli: Command, tiny: Path, tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    (tmp_path / "in.jsonl").write_text(json.dumps(chat) + "\n")
    (found,) = records(cli("generate", "--batch", tmp_path / "in.jsonl", "--model", tiny, "--max-tokens", 2).out)
    framed = json.loads(cli("generate", "hello", "--chat", "--model", tiny, "--max-tokens", 2, "--json").out)
    assert found["prompt_tokens"] == framed["prompt_tokens"]


def test_a_prompt_from_a_file(cli: Command, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("the fox\nand the dog\n")
    arguments = ["--model", tiny, "--max-tokens", 4]
    told = cli("generate", "the fox\nand the dog", *arguments).out
    assert cli("generate", "--prompt-file", tmp_path / "prompt.txt", *arguments).out == told
    assert cli("generate", "--prompt-file", "-", *arguments, stdin=b"the fox\nand the dog\n").out == told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--prompt-file", "f"], "A prompt and a --prompt-file"),
        (["x", "--batch", "f"], "A prompt and a --batch"),
        (["--prompt-file", "nowhere.txt"], "no file nowhere.txt"),
        (["--batch", "nowhere.jsonl"], "no file nowhere.jsonl"),
        (["x", "--out", "f"], "--out is for --batch"),
        (["x", "--top-log-probs", "3"], "--top-log-probs has nowhere to go"),
        (["x", "--top-log-probs", "-1", "--json"], "top_log_probs is -1"),
        (["x", "--batch-size", "0"], "batch_size is 0"),
    ],
)
def test_mistakes(cli: Command, arguments: list[str], message: str) -> None:
    ended = cli("generate", *arguments)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 2) and message in ended.err
