"""Every way a command can end badly, as one sentence, a hint and an exit status; never a traceback unless asked for."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from outpace.errors import OutpaceError

__all__ = ["CLOSED_PIPE", "FAILURE", "INTERRUPTED", "MISTAKE", "guarded", "interruptible", "tell"]

FAILURE, MISTAKE, INTERRUPTED, CLOSED_PIPE = 1, 2, 130, 141  # as shells number them: 128 + the signal
_DEBUG_HINT = "If the cause is not plain, run again with OUTPACE_DEBUG=1 for the traceback, and report it."


def guarded(run: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command; turn what it raises into a sentence on standard error and an exit status."""
    if os.environ.get("OUTPACE_DEBUG") == "1":
        return run(arguments)
    try:
        status = run(arguments)
        sys.stdout.flush()
        return status
    except (BrokenPipeError, SystemExit):  # rich ends by itself where a reader goes away
        _forget_output()
        return CLOSED_PIPE
    except KeyboardInterrupt:
        tell("Interrupted.")
        return INTERRUPTED
    except OutpaceError as error:
        tell(str(error), error.hint)
        return error.exit_status
    except OSError as error:
        _forget_output()
        if error.errno == errno.EBADF and error.filename is None:
            tell("Standard output is closed.", "Send it to a file, or to /dev/null if the text is not wanted.")
            return FAILURE
        where = f"{error.filename}: " if error.filename else ""
        tell(f"{where}{error.strerror or error}", "Check the path, the permissions and the space left.")
        return FAILURE
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's usage errors, whose classes moved between its versions
            tell(*_usage(error))
            return MISTAKE
        tell(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}", _DEBUG_HINT)
        return FAILURE


def tell(message: str, hint: str = "") -> None:
    """Print an error and its hint on standard error, plainly."""
    text = f"error: {_sentence(message)}\n" + (f"hint: {_sentence(hint)}\n" if hint else "")
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:  # nobody listens any more
        pass


@contextmanager
def interruptible(*signals: int, is_patient: bool = False) -> Iterator[Callable[[], bool]]:
    """Turn the first signal (by default Ctrl-C) into a wish that can be asked for.

    Args:
        *signals: numbers; none = SIGINT.
        is_patient: later signals repeat the wish; else the second stops hard.
    """
    is_wished = False

    def wish(number: int, frame: FrameType | None) -> None:
        nonlocal is_wished
        if is_wished and not is_patient:
            raise KeyboardInterrupt
        is_wished = True

    if threading.current_thread() is not threading.main_thread():  # only the main thread may listen for signals
        yield lambda: False
        return
    before = {number: signal.signal(number, wish) for number in signals or (signal.SIGINT,)}
    try:
        yield lambda: is_wished
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _usage(error: Exception) -> tuple[str, str]:
    """Return message and hint of a typer usage error."""
    message, _, guess = error.format_message().partition("Did you mean")  # type: ignore[attr-defined]
    message, _, others = message.replace("\n", " ").partition("(Possible options: ")
    if guess or others:
        return message, f"Did you mean {(guess or others).strip(' ?.)').replace(', ', ' or ')}?"
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "outpace"
    return message, f"`{path} --help` lists what can be given."


def _sentence(text: str) -> str:
    """Return the text on one line, with a full stop."""
    text = " ".join(text.split())
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _forget_output() -> None:
    """Point standard output to nowhere, so that flushing at exit cannot fail again."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        pass
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):  # not a real file, as in a test
        pass
