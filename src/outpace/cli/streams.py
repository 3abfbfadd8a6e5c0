"""Standard streams that were closed by whoever started the command (`>&-`): none of them may be a crash."""

from __future__ import annotations

import contextlib
import os
import sys

__all__ = ["secure_streams"]


def secure_streams() -> None:
    """Give every closed standard stream a place, so that no file that is opened later takes its number.

    Nothing is read and messages go nowhere. Output fails when something is written: a text that is lost without a word
    would pass for success.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is given, and those below are taken by now. What is open for reading refuses text.
            os.open(os.devnull, os.O_RDWR if name == "stderr" else os.O_RDONLY)
        if name != "stdin":  # whoever reads it asks whether it is there
            with contextlib.suppress(OSError):
                setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))
