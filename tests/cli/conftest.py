"""The command line inside this process."""

from __future__ import annotations

import io
import sys

import pytest
from tests_cli import Command, Ended

from outpace.cli import main


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command line in this process; `stdin` is what is piped in."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("OUTPACE_DEBUG", raising=False)

    def run(*arguments: object, stdin: bytes = b"") -> Ended:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Ended(status, *capsys.readouterr())

    return run
