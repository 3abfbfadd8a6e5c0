"""The command line: one thin file per command, one place where errors become sentences.

Nothing heavy is imported before a command needs it, so that `outpace --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["app", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 = success, 1 = a failure, 2 = a mistake in what was asked, 3 = too little seen for a certificate, 130 = Ctrl-C,
    141 = the reader of the output went away.
    OUTPACE_DEBUG=1 lets every error through with its traceback.

    Args:
        argv: the arguments after the program's name; None = those of this process.
    """
    try:
        from outpace.cli.streams import secure_streams
        from outpace.failures import guarded

        secure_streams()
        return guarded(_run, list(sys.argv[1:] if argv is None else argv) or ["--help"])
    except KeyboardInterrupt:  # before anything was set up, or while the last words were said
        return 130


def _run(arguments: list[str]) -> int:
    import typer

    from outpace.cli.application import app

    command = typer.main.get_command(app)
    try:
        with command.make_context("outpace", arguments) as context:
            return int(command.invoke(context) or 0)
    except typer.Exit as ended:
        return ended.exit_code


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from outpace.cli.application import app

    return app
