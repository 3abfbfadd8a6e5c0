"""`outpace generate --tensor-parallel`: one command, several processes, the same text."""

from __future__ import annotations

import pytest
from tests_cli import Command


def test_two_processes_write_the_text_of_one(cli: Command) -> None:
    law = ["--max-tokens", 12, "--temperature", 0.8, "--seed", 4, "--dtype", "float64", "--no-compile"]
    whole = cli("generate", "Once upon a time", *law)
    split = cli("generate", "Once upon a time", *law, "--tensor-parallel", 2, "--method", "prompt-lookup")
    assert (split.status, split.out, split.err) == (0, whole.out, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", __file__], "goes with neither --batch nor --trace"),
        (["x", "--trace", "out.jsonl"], "goes with neither --batch nor --trace"),
        (["x", "--method", "auto"], "auto weighs by the clock"),
    ],
)
def test_mistakes(cli: Command, arguments: list[str], message: str) -> None:
    ended = cli("generate", *arguments, "--tensor-parallel", 2)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 2) and message in ended.err


def test_torchrun_and_the_command_agree(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    ended = cli("generate", "x", "--tensor-parallel", 2)
    assert ended.status == 2 and "torchrun started 3 processes" in ended.err
