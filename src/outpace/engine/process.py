"""An engine in a process of its own: its owner lives on when it dies, and its steps wait for nobody's interpreter."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Self

from outpace.engine.entry import Sink
from outpace.engine.face import Ask, Face, Gone, Load, Ticket
from outpace.engine.limits import Limits
from outpace.engine.tickets import LoopTicket, Outbox
from outpace.engine.wire import Channel, Message, unpack_piece
from outpace.errors import ConfigError, OutpaceError
from outpace.models.opening import locate
from outpace.text.tokenizer import Tokenizer

__all__ = ["EngineProcess"]

_GRACE_S = 10.0  # beyond the drain, until a process is ended
_LOOK_S = 0.5  # between two looks at the beats
_FIRST_WAIT_S, _LONGEST_WAIT_S = (
    0.1,
    10.0,
)  # before a process is started again; twice as long each time it fails to load


class EngineProcess(Face):
    """A language model in a process of its own, started again when it dies: what it held then fails with `Gone`.

    Args:
        model: what `outpace.load` takes.
        limits: how much it takes upon itself at a time.
        hang_s: a process that works on one step for so long, or says nothing for so long, is ended.
        **options: those of `outpace.load`.

    Raises:
        OutpaceError: the model cannot be loaded.
    """

    def __init__(self, model: str, *, limits: Limits | None = None, hang_s: float = 120.0, **options: Any) -> None:
        self._setup: Message = (model, limits or Limits(), options)
        self._hang_s = hang_s
        self._lock, self._ended, self._numbers = threading.Lock(), threading.Event(), itertools.count()
        self._held: dict[int, Sink | Future[Any]] = {}
        self._outbox, self._last, self._restarts = Outbox(), Load(), 0
        self._is_closing, self._is_up, self._beat = False, False, -1
        self.tokenizer = Tokenizer.from_directory(locate(model)[0])  # first: a name that is none costs no process
        self._start()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._serve, self._watch)]
        for thread in self._threads:
            thread.start()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def process_id(self) -> int | None:
        """Of the process as the system knows it; None while there is none."""
        return self._process.pid if self._is_up else None

    async def submit(self, ask: Ask) -> Ticket:
        """As `Face.submit`."""
        for name in ("watch", "memory", "models"):
            if ask.arguments.get(name) is not None:
                raise ConfigError(f"{name} cannot go to another process.", "Use an engine in this process.")
        ticket = LoopTicket(self._outbox)
        number = self._send(ticket, "ask", ask)
        ticket.on_cancel = lambda: self._tell(("cancel", number))
        await ticket.wait_taken()
        return ticket

    async def embed(self, texts: Sequence[Sequence[int]], pooling: str = "mean") -> list[list[float]]:
        """As `Face.embed`."""
        done = Future[Any]()
        self._send(done, "embed", [list(text) for text in texts], pooling)
        found: list[list[float]] = await asyncio.wrap_future(done)
        return found

    async def load(self) -> Load:
        """As `Face.load`; of a process that died, the last that was heard. A new one counts from zero."""
        done = Future[Load]()
        try:
            self._send(done, "load")
            self._last = await asyncio.wrap_future(done)
        except Gone:
            self._last = replace(self._last, running=0, waiting=0, pages_used=0, is_alive=False)
        return replace(self._last, restarts=self._restarts)

    async def close(self, drain_s: float = 30.0) -> None:
        """As `Face.close`."""
        await asyncio.to_thread(self._close, drain_s)

    # 1) Speaking to the process, from any thread

    def _send(self, sink: Sink | Future[Any], kind: str, *given: Any) -> int:
        with self._lock:
            if self._is_closing or not self._is_up:
                raise _gone(self._is_closing)
            number, channel = next(self._numbers), self._channel
            self._held[number] = sink
        try:
            channel.send([(kind, number, *given)])
        except (OSError, ValueError) as error:
            self._held.pop(number, None)
            raise _gone() from error
        except Exception as error:  # nothing was sent
            self._held.pop(number, None)
            raise ConfigError(f"What was asked cannot go to another process ({error}).", "Give plain data.") from error
        return number

    def _tell(self, message: Message) -> None:
        with contextlib.suppress(OSError, ValueError):  # it is gone, and what it held has failed
            self._channel.send([message])

    def _close(self, drain_s: float) -> None:
        with self._lock:
            is_up, self._is_closing = self._is_up and not self._is_closing, True
        self._ended.set()
        if is_up:
            self._tell(("close", drain_s))
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(drain_s + _GRACE_S)
        self._process.kill()
        for thread in self._threads:
            thread.join()

    # 2) The process, from one thread

    def _start(self) -> None:
        """Start a process and wait until it has loaded the model.

        Raises:
            OutpaceError: it could not.
        """
        command = [sys.executable, "-m", "outpace.engine.child"]
        self._process = process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None and process.stdout is not None  # they are pipes
        channel = Channel(process.stdout, process.stdin)
        try:
            channel.send([self._setup])
            ((kind, given),) = channel.receive()
        except (EOFError, OSError):
            sentence = "The engine's process died while it loaded the model."
            kind, given = "failed", OutpaceError(sentence, "See what it printed.")
        if kind == "failed":
            process.kill()
            process.wait()
            channel.close()
            raise given
        self.traits = given if not self._restarts else self.traits
        with self._lock:
            self._channel, self._changed, self._is_up = channel, time.monotonic(), True

    def _serve(self) -> None:
        while not self._is_closing:
            try:
                while True:
                    self._hear(self._channel.receive())
            except (EOFError, OSError, ValueError):
                self._bury()
            wait_s = _FIRST_WAIT_S
            while not self._is_up and not self._ended.wait(wait_s):
                self._restarts += 1
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                with contextlib.suppress(OutpaceError):
                    self._start()

    def _hear(self, messages: Sequence[Message]) -> None:
        for kind, number, *given in messages:
            if kind == "beat":
                if number == self._beat and number >= 0:
                    continue  # it works on the step that it worked on before
                self._beat = number
            elif kind == "piece":
                self._sink(number).put(unpack_piece(given[0]))
            elif kind == "taken":
                self._sink(number).taken(given[0])
            elif kind == "answer":
                _settle(self._held.pop(number, None), *given)
            elif kind == "end":
                self._sink(number, is_last=True).end(*given)
            else:
                self._sink(number, is_last=True).refused(given[0])
            self._changed = time.monotonic()
        self._outbox.flush()

    def _sink(self, number: int, is_last: bool = False) -> Sink:
        held = self._held.pop(number, None) if is_last else self._held.get(number)
        return held if isinstance(held, Sink) else _Nobody()

    def _bury(self) -> None:
        """Fail what a process held that is gone."""
        self._process.kill()
        self._process.wait()
        with self._lock:
            self._is_up = False
            held, self._held = self._held, {}
        self._channel.close()
        for sink in held.values():
            if isinstance(sink, Future):
                _settle(sink, None, _gone(self._is_closing))
            else:  # the one or the other, as it was taken or not
                sink.refused(_gone(self._is_closing))
                sink.end(None, _gone(self._is_closing))
        self._outbox.flush()

    def _watch(self) -> None:
        """End a process that hangs."""
        while not self._ended.wait(_LOOK_S):
            if self._is_up and time.monotonic() - self._changed > self._hang_s:
                self._process.kill()


class _Nobody(Sink):
    """Whoever asked has been told that the process was gone."""


def _settle(done: object, value: Any, error: Exception | None) -> None:
    if not isinstance(done, Future) or not done.set_running_or_notify_cancel():
        return
    if error is None:
        done.set_result(value)
    else:
        done.set_exception(error)


def _gone(is_closing: bool = False) -> Gone:
    if is_closing:
        return Gone("The engine is closed.", "Start it again.")
    return Gone("The engine's process ended; it is being started again.", "Ask again in a moment.")
