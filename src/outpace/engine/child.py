"""The process of an engine: `python -m outpace.engine.child`, started by `outpace.engine.process`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

from outpace.api.engine import load
from outpace.api.result import Result
from outpace.engine.core import read_traits
from outpace.engine.entry import Sink
from outpace.engine.face import Ask, Piece
from outpace.engine.limits import Limits
from outpace.engine.wire import Channel, Message, pack_piece, portable
from outpace.engine.worker import Worker

__all__ = ["main"]

_BEAT_S = 0.5


class _Answers(Sink):
    """Sends what becomes of an ask to the owner; what a turn says goes in one frame.

    Args:
        channel, frame: where it goes, at once or with the rest of a turn.
        number: the ask's.
        cancels: what cancels it is forgotten when it ends.
    """

    def __init__(
        self, channel: Channel, frame: list[Message], number: int, cancels: dict[int, Callable[[], None]]
    ) -> None:
        self._channel, self._frame, self._number, self._cancels = channel, frame, number, cancels
        self._has_ended = False

    def bind(self, cancel: Callable[[], None]) -> None:
        """Note what cancels the ask, which may have ended in the meantime."""
        self._cancels[self._number] = cancel
        if self._has_ended:
            self._forget()

    def taken(self, prompt_tokens: Sequence[int]) -> None:
        self._channel.send([("taken", self._number, list(prompt_tokens))])

    def refused(self, error: Exception) -> None:
        self._forget()
        self._channel.send([("refused", self._number, portable(error))])

    def put(self, piece: Piece) -> None:
        self._frame.append(("piece", self._number, pack_piece(piece)))

    def end(self, results: list[Result] | None, error: Exception | None = None) -> None:
        self._forget()
        self._frame.append(("end", self._number, results, None if error is None else portable(error)))

    def _forget(self) -> None:
        self._has_ended = True  # before the pop: whoever binds looks after noting
        self._cancels.pop(self._number, None)


class _Child:
    """Serves one owner.

    Args:
        channel: to the owner.
        model, limits, options: as `outpace.engine.EngineProcess` takes them.
    """

    def __init__(self, channel: Channel, model: str, limits: Limits, options: dict[str, Any]) -> None:
        self._channel, self._frame = channel, list[Message]()
        self._cancels: dict[int, Callable[[], None]] = {}
        lm = load(model, **options)
        self._worker = Worker(lm, limits, self._flush)
        channel.send([("ready", read_traits(lm, self._worker.context))])

    def serve(self) -> None:
        """Do what the owner says, until it closes the engine or is gone."""
        threading.Thread(target=self._beat, daemon=True).start()
        deeds: dict[str, Callable[..., None]] = {
            "ask": self._ask,
            "cancel": self._cancel,
            "embed": self._embed,
            "load": self._load,
            "close": self._close,
        }
        while True:
            for kind, *given in self._channel.receive():
                deeds[kind](*given)

    def _ask(self, number: int, ask: Ask) -> None:
        answers = _Answers(self._channel, self._frame, number, self._cancels)
        try:
            answers.bind(self._worker.take(ask, answers))
        except Exception as error:
            answers.refused(error)

    def _cancel(self, number: int) -> None:
        if (cancel := self._cancels.get(number)) is not None:
            cancel()

    def _embed(self, number: int, texts: Sequence[Sequence[int]], pooling: str) -> None:
        try:
            self._worker.embed(texts, pooling).add_done_callback(lambda done: self._answer(number, done))
        except Exception as error:
            self._channel.send([("answer", number, None, portable(error))])

    def _answer(self, number: int, done: Future[list[list[float]]]) -> None:
        try:
            self._channel.send([("answer", number, done.result(), None)])
        except (Exception, CancelledError) as error:
            self._channel.send([("answer", number, None, portable(error))])

    def _load(self, number: int) -> None:
        self._channel.send([("answer", number, self._worker.load(), None)])

    def _close(self, drain_s: float) -> None:
        """Close beside the messages that still come, then end the process."""

        def close() -> None:
            self._worker.close(drain_s)
            os._exit(0)

        threading.Thread(target=close).start()

    def _flush(self) -> None:
        if self._frame:
            self._channel.send(self._frame)
            self._frame.clear()

    def _beat(self) -> None:
        while True:
            self._channel.send([("beat", self._worker.beats if self._worker.is_busy else -1)])
            time.sleep(_BEAT_S)


def main() -> None:
    """Load the model that the owner names, and serve it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the owner closes
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no message
    channel = Channel(sys.stdin.buffer, sink)
    try:
        ((model, limits, options),) = channel.receive()
        try:
            child = _Child(channel, model, limits, options)
        except Exception as error:
            channel.send([("failed", portable(error))])
            return
        child.serve()
    except (EOFError, OSError):  # the owner is gone
        os._exit(1)


if __name__ == "__main__":
    main()
