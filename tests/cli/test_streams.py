"""Standard streams that are closed, or whose reader goes away: no traceback, and the right exit status."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import pytest
from tests_cli import start

from outpace.cli import main
from outpace.cli.progress import Teller


def closing(*numbers: int) -> Callable[[], None]:
    """Return what closes streams in the new process, as a shell's `>&-` does."""
    return partial(lambda: [os.close(number) for number in numbers])


@pytest.mark.parametrize(
    ("arguments", "closed", "status", "said"),
    [
        (["--version"], (1,), 1, "error: Standard output is closed.\nhint: Send it"),
        (["--version"], (2,), 0, ""),
        (["--version"], (0, 1, 2), 1, ""),
        (["--help"], (1,), 1, "error: Standard output is closed.\nhint: Send it"),
        (["generate"], (0,), 2, "error: No prompt was given.\n"),
        (["generate", "-"], (0,), 2, "error: No prompt was given.\n"),
        (["generate", "-o", "f", "-"], (2,), 2, ""),
    ],
)
def test_closed_streams(arguments: list[str], closed: tuple[int, ...], status: int, said: str) -> None:
    process = start(*arguments, preexec_fn=closing(*closed))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status and errors.decode().startswith(said)
    assert errors == b"" or errors.count(b"\n") == 2


def test_help_without_a_reader(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: object) -> int:  # how rich ends where the reader of its output goes away
        raise SystemExit(1)

    monkeypatch.setattr("outpace.cli._run", gone)
    assert main(["--help"]) == 141
    assert capfd.readouterr() == ("", "")


def test_progress_in_a_log_and_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    log = Teller(is_terminal=False)
    for elapsed, left, is_done in ((1, None, False), (16, 84, False), (17, 80, False), (20, 60, True)):
        log.tell("greedy", elapsed, left, is_done)
    log.close()
    assert capsys.readouterr().err == "16 s, about 84 s left: greedy\n20 s, about 60 s left: greedy done\n"
    bar = Teller(is_terminal=True)
    bar.tell("greedy", 30, 90)
    assert "[######------------------] 30 s, about 90 s left: greedy" in capsys.readouterr().err
