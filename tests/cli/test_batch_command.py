"""`outpace batch`: a line's own settings and errors, runs that were killed, files of another batch."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests_cli import Command, start

import outpace
from outpace.server.batch_file import Answers

LINES: list[dict[str, Any] | str] = [
    {"prompt": "the quick brown fox", "id": "a", "max_tokens": 9},
    {"prompt": "the lazy dog", "temperature": 0.9, "seed": 3, "num_samples": 2},
    "nonsense",
    {"messages": [{"role": "user", "content": "hello"}], "method": "autoregressive"},
    {"prompt": [5, 6, 7], "top_k": -1},
    {"text": "x", "prompt": "y"},
    {"prompt": ["one", "two"]},
    {"prompt": "x", "temperatur": 1},
    '{"prompt": "\\ud800"}',
    '{"prompt": "x", "temperature": NaN}',
    "[" * 100_000,
    {"prompt": "the", "regex": "[ab]{3}", "top_log_probs": 3, "stop": ["b"], "id": {"any": 1}},
]


def write(path: Path, lines: list[dict[str, Any] | str]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def records(path: Path) -> dict[int, dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({record["line"] for record in found}) == len(found), "a line is there twice"
    return {record["line"]: record for record in found}


def wait_for(path: Path, lines: int) -> bool:
    """Wait until so many lines are answered; return whether they are."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return True
        time.sleep(0.01)
    return False


def test_lines_own_their_settings_and_their_errors(cli: Command, tiny: Path, tmp_path: Path) -> None:
    given, out = write(tmp_path / "in.jsonl", LINES), tmp_path / "out.jsonl"
    ended = cli("batch", given, out, "--model", tiny, "--max-tokens", 5, "--ignore-eos", "--method", "jacobi", "--json")
    assert (ended.status, json.loads(ended.out)) == (
        1,
        {"lines": 12, "before": 0, "written": 12, "errors": 8, "open": 0, "tokens": 25, "out": str(out)},
    )
    found, lm = records(out), outpace.load(tiny)
    assert (
        found[1]["id"] == "a"
        and found[1]["outputs"][0]["text"] == lm.generate(LINES[0]["prompt"], max_tokens=9, ignore_eos=True).text
    )  # type: ignore[index]
    samples = lm.generate("the lazy dog", temperature=0.9, seed=3, num_samples=2, max_tokens=5, ignore_eos=True)
    assert [one["tokens"] for one in found[2]["outputs"]] == [result.tokens for result in samples]
    assert found[4]["outputs"][0]["tokens"] == lm.chat(LINES[3]["messages"], max_tokens=5, ignore_eos=True).tokens  # type: ignore[index]
    told = {number: found[number]["error"]["message"] for number in (3, 5, 6, 7, 8)}
    assert "no JSON" in told[3] and "top_k is -1" in told[5] and "both prompt and text" in told[6]
    assert "surrogate" in found[9]["error"]["message"] and "no JSON" in found[10]["error"]["message"]
    assert "no JSON" in found[11]["error"]["message"] and found[12]["id"] == {"any": 1}
    assert "neither messages nor tokens" in told[7] and "no argument 'temperatur'" in told[8]


def test_ctrl_c_leaves_what_is_open_to_the_next_run(cli: Command, tiny: Path, tmp_path: Path) -> None:
    given = write(
        tmp_path / "in.jsonl", [{"prompt": "the fox"}] + [{"prompt": f"x{n}", "max_tokens": 480} for n in range(6)]
    )
    arguments = ["--model", tiny, "--max-tokens", 2, "--ignore-eos", "--rows", 2, "--no-compile"]
    out = tmp_path / "out.jsonl"

    def interrupt() -> None:
        if wait_for(out, 1):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    ended = cli("batch", given, out, *arguments)
    thread.join()
    assert ended.status == 130 and "error: Interrupted.\nhint: Run it again" in ended.err
    held = records(tmp_path / "out.jsonl")
    assert 1 <= len(held) < 7 and all(one["outputs"][0]["finish_reason"] == "length" for one in held.values())


def test_a_killed_run_loses_and_doubles_nothing(cli: Command, tiny: Path, tmp_path: Path) -> None:
    given = write(tmp_path / "in.jsonl", [{"prompt": f"the fox {n}", "temperature": 1.0, "seed": n} for n in range(24)])
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    arguments = ["--model", tiny, "--max-tokens", 30, "--ignore-eos", "--rows", 2, "--no-compile"]
    running = start("batch", given, broken, *arguments)
    assert wait_for(broken, 3)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    held = broken.read_bytes()
    assert 3 <= held.count(b"\n") < 24
    broken.write_bytes(held + held[:40])  # torn in the middle of a line, as by a power cut
    assert cli("batch", given, broken, *arguments, "--ordered").status == 0
    assert cli("batch", given, whole, *arguments, "--ordered").status == 0
    assert broken.read_bytes() == whole.read_bytes() and list(records(whole)) == list(range(1, 25))


def test_answers_of_another_batch_are_refused(cli: Command, tiny: Path, tmp_path: Path) -> None:
    given, out = write(tmp_path / "in.jsonl", [{"prompt": "the fox"}, "bad"]), tmp_path / "out.jsonl"
    arguments = ["--model", tiny, "--max-tokens", 2]
    assert cli("batch", given, out, *arguments).status == 1
    done = out.read_bytes()
    for change in (["--max-tokens", 3], ["--temperature", 0.5], ["--dtype", "float32"]):
        ended = cli("batch", given, out, *arguments, *change)
        assert (ended.status, out.read_bytes()) == (2, done) and "answers lines 1, 2 of another" in ended.err
    write(given, [{"prompt": "the fox"}])
    ended = cli("batch", given, out, *arguments)
    assert ended.status == 2 and "answers line 2 of another" in ended.err
    write(given, [{"prompt": "the fox"}, {"prompt": "the dog"}])
    ended = cli("batch", given, out, *arguments)
    assert ended.status == 2 and "answers line 2 of another" in ended.err
    write(given, [{"prompt": "the fox"}, "bad", {"prompt": "the dog"}])  # a file may grow
    assert cli("batch", given, out, *arguments).status == 1
    assert out.read_bytes().startswith(done) and set(records(out)) == {1, 2, 3}


def test_errors_are_asked_again_where_that_is_wanted(cli: Command, tiny: Path, tmp_path: Path) -> None:
    given, out = write(tmp_path / "in.jsonl", [{"prompt": "the fox"}, "bad", {"prompt": "x"}]), tmp_path / "out.jsonl"
    assert cli("batch", given, out, "--model", tiny, "--max-tokens", 2).status == 1
    before = records(out)
    ended = cli("batch", given, out, "--model", tiny, "--max-tokens", 2, "--retry-errors", "--json")
    assert json.loads(ended.out) | {"out": ""} == {
        "lines": 3, "before": 2, "written": 1, "errors": 1, "open": 0, "tokens": 0, "out": ""
    }  # fmt: skip
    assert records(out) == before


def test_two_runs_do_not_write_one_file(cli: Command, tmp_path: Path) -> None:
    given, out = write(tmp_path / "in.jsonl", [{"prompt": "the fox"}]), tmp_path / "out.jsonl"
    first = Answers(out)
    ended = cli("batch", given, out)
    assert ended.status == 2 and "Another run is writing" in ended.err
    first.close()


def test_a_parquet_file_needs_pyarrow(cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "in.parquet").write_bytes(b"")
    ended = cli("batch", tmp_path / "in.parquet", tmp_path / "out.jsonl")
    assert ended.status == 2 and "pyarrow, which is not installed" in ended.err


def test_a_parquet_file_is_read_like_lines(cli: Command, tiny: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": "the fox", "seed": 3, "id": "a"}, {"messages": [{"role": "user", "content": "hello"}]}]
    columns = {name: [row.get(name) for row in rows] for name in ("prompt", "seed", "id", "messages")}
    parquet.write_table(arrow.table(columns), tmp_path / "in.parquet")
    write(tmp_path / "in.jsonl", rows)
    for kind in ("parquet", "jsonl"):
        assert cli("batch", tmp_path / f"in.{kind}", tmp_path / kind, "--model", tiny, "--max-tokens", 3).status == 0
    columns_read, lines_read = (records(tmp_path / kind) for kind in ("parquet", "jsonl"))
    assert set(columns_read) == set(lines_read) == {1, 2}
    assert all(columns_read[line]["outputs"] == lines_read[line]["outputs"] for line in (1, 2))
    (tmp_path / "in.parquet").write_bytes(b"PAR1 nothing of the kind PAR1")
    ended = cli("batch", tmp_path / "in.parquet", tmp_path / "new")
    assert ended.status == 2 and "no Parquet file that can be read" in ended.err


@pytest.mark.parametrize(
    ("text", "held", "message"),
    [
        ("", None, "holds no line"),
        ('{"prompt": "x"}\n', "hello\n", "holds something else than answers (line 1)"),
        ('{"prompt": "x"}\n', '{"line": 1}\n', "holds something else than answers (line 1)"),
    ],
)
def test_mistakes(cli: Command, tmp_path: Path, text: str, held: str | None, message: str) -> None:
    (tmp_path / "in.jsonl").write_text(text)
    if held is not None:
        (tmp_path / "out.jsonl").write_text(held)
    ended = cli("batch", tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 2) and message in ended.err
    if held is not None:
        assert (tmp_path / "out.jsonl").read_text() == held
    ended = cli("batch", tmp_path / "in.jsonl", tmp_path / "in.jsonl")
    assert ended.status == 2 and ("are one file" in ended.err or "holds no line" in ended.err)
