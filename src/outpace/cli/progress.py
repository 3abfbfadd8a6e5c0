"""Progress on standard error: a bar on a terminal; elsewhere, in a log say, a line now and then."""

from __future__ import annotations

import sys
import time

__all__ = ["Bytes", "Teller"]

_EVERY_S = 15.0  # between two lines of a log about the same part
_WIDTH = 24


class Teller:
    """Says what is being done, how long it has taken and what the rest may take.

    Args:
        is_terminal: draw a bar that is overwritten; None = where standard error is a terminal.
    """

    def __init__(self, is_terminal: bool | None = None) -> None:
        stream = sys.stderr
        self.is_terminal = (stream is not None and stream.isatty()) if is_terminal is None else is_terminal
        self._told_s = 0.0

    def tell(self, what: str, elapsed_s: float, left_s: float | None, is_done: bool = False) -> None:
        """Show progress.

        Args:
            what: the part.
            elapsed_s: seconds since the start.
            left_s: seconds that the rest may take; None = not known.
            is_done: the part has ended, so that a log gets its line.
        """
        rest = "no estimate yet" if left_s is None else f"about {left_s:.0f} s left"
        if self.is_terminal:
            share = 0.0 if left_s is None else elapsed_s / max(elapsed_s + left_s, 1e-9)
            filled = round(share * _WIDTH)
            self._say(f"\r\x1b[K[{'#' * filled}{'-' * (_WIDTH - filled)}] {elapsed_s:.0f} s, {rest}: {what}")
        elif is_done or elapsed_s - self._told_s >= _EVERY_S:
            self._told_s = elapsed_s
            self._say(f"{elapsed_s:.0f} s, {rest}: {what}{' done' if is_done else ''}\n")

    def close(self) -> None:
        """Take the bar away."""
        if self.is_terminal:
            self._say("\r\x1b[K")

    @staticmethod
    def _say(text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (AttributeError, OSError, ValueError):  # closed, or nobody listens any more
            pass


class Bytes:
    """Says how many bytes of what have come, and how fast; it is called, part by part, as they come."""

    def __init__(self) -> None:
        self._teller, self._began_s = Teller(), time.monotonic()
        self._part, self._part_s, self._held = "", 0.0, 0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show progress.

        Args:
            what: the part.
            done, total: bytes.
        """
        now = time.monotonic()
        if what != self._part:  # what was there before counts for no speed
            self._part, self._part_s, self._held = what, now, done
        rate = (done - self._held) / max(now - self._part_s, 1e-3)
        told = f"{what}, {done / 1e6:.1f} of {total / 1e6:.1f} MB" + (f", {rate / 1e6:.1f} MB/s" if rate else "")
        self._teller.tell(told, now - self._began_s, (total - done) / rate if rate else None, is_done=done == total)

    def close(self) -> None:
        """Take the bar away."""
        self._teller.close()
