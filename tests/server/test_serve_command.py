"""The command: what it says, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from scripted import PATIENCE_S

from outpace.cli import main


def test_it_says_where_it_listens_and_lets_what_runs_end(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-long-key\n")
    command = [sys.executable, "-m", "outpace", "serve", "--model", "tales=stories", "--port", "0"]
    command += ["--api-key-file", str(keys), "--log"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"}, **pipes) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            assert line.startswith("Serving tales at http://127.0.0.1:"), line
            url, asked = line.split()[-1], {"prompt": "Once upon a secret", "max_tokens": 60, "ignore_eos": True}
            with httpx.stream(
                "POST",
                f"{url}/v1/completions",
                json={**asked, "stream": True},
                headers={"x-api-key": "a-long-key"},
                timeout=PATIENCE_S,
            ) as answer:
                lines = answer.iter_lines()
                first = next(lines)
                child.send_signal(signal.SIGTERM)
                events = [json.loads(line[6:]) for line in (first, *lines) if line.startswith("data: {")]
            assert events[-1]["choices"][0]["finish_reason"] == "length"
            _, errors = child.communicate(timeout=PATIENCE_S)
            assert child.returncode == 0, errors
            assert "POST '/v1/completions' 200" in errors
            assert "secret" not in errors and "a-long-key" not in errors
        finally:
            child.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "there are no keys"),
        (["--host", "nowhere.invalid"], "no keys"),
        (["--model", "=stories"], "has no name"),
        (["--model", "stories", "--model", "a/stories"], "Two models"),
        (["--model", "nothing-of-this-name", "--port", "0"], "nothing-of-this-name"),
        (["--method", "nothing"], "There is no method"),
        (["--method", "suffix", "-o", "nothing=1"], "has no option"),
        (["--max-samples", "0"], "max_samples"),
        (["--api-key-file", "no/such/file"], "cannot be read"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["serve", *arguments]) == 2
    told = capsys.readouterr()
    assert message in told.err and told.err.count("\n") == 2 and not told.out


def test_a_port_in_use_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be had" in capsys.readouterr().err
