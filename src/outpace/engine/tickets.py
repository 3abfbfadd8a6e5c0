"""Answers on their way from an engine's thread into the event loops of those who asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from outpace.api.result import Result
from outpace.engine.entry import Sink
from outpace.engine.face import Piece, Ticket

__all__ = ["LoopTicket", "Outbox"]

Loop = asyncio.AbstractEventLoop
Call = Callable[[], None]


class Outbox:
    """Calls to be made in other threads' loops, gathered so that each loop is woken once per step of the engine."""

    def __init__(self) -> None:
        self._calls: dict[Loop, list[Call]] = {}

    def add(self, loop: Loop, call: Call) -> None:
        """Note a call for `flush`; in the engine's thread."""
        self._calls.setdefault(loop, []).append(call)

    def flush(self) -> None:
        """Have everything called that was noted; in the engine's thread."""
        calls, self._calls = self._calls, {}
        for loop, noted in calls.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits in it any more
                loop.call_soon_threadsafe(_call, noted)


def _call(noted: Sequence[Call]) -> None:
    for call in noted:
        call()


class LoopTicket(Ticket, Sink):
    """An ask of somebody in the running loop.

    Args:
        outbox: of the engine's thread.

    Attributes:
        on_cancel: stops the writing.
    """

    def __init__(self, outbox: Outbox) -> None:
        self.prompt_tokens = []
        self.on_cancel: Call = lambda: None
        self._outbox, self._loop = outbox, asyncio.get_running_loop()
        self._taken: asyncio.Future[None] = self._loop.create_future()
        self._results: asyncio.Future[list[Result]] = self._loop.create_future()
        self._pieces = asyncio.Queue[Piece | None]()
        for future in (self._taken, self._results):  # nobody has to ask for an error
            future.add_done_callback(lambda done: done.cancelled() or done.exception())

    # The caller's side

    async def wait_taken(self) -> None:
        """Wait until the engine has taken the ask, or raise why it has not; who stops waiting cancels it."""
        try:
            await asyncio.shield(self._taken)
        except asyncio.CancelledError:
            self.cancel()
            raise

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self._read()

    async def _read(self) -> AsyncIterator[Piece]:
        while (piece := await self._pieces.get()) is not None:
            yield piece
        await self.results()

    async def results(self) -> list[Result]:
        """As `Ticket.results`."""
        return await asyncio.shield(self._results)

    def cancel(self) -> None:
        """As `Ticket.cancel`."""
        self.on_cancel()

    # The engine's side

    def taken(self, prompt_tokens: Sequence[int]) -> None:
        """As `Sink.taken`."""
        self.prompt_tokens = list(prompt_tokens)
        self._post(lambda: _settle(self._taken, None))

    def refused(self, error: Exception) -> None:
        """As `Sink.refused`."""
        self._post(lambda: _settle(self._taken, None, error))

    def put(self, piece: Piece) -> None:
        """As `Sink.put`."""
        self._outbox.add(self._loop, lambda: self._pieces.put_nowait(piece))

    def end(self, results: list[Result] | None, error: Exception | None = None) -> None:
        """As `Sink.end`."""
        self._outbox.add(self._loop, lambda: self._end(results, error))

    def _post(self, call: Call) -> None:
        with contextlib.suppress(RuntimeError):  # as in `Outbox.flush`
            self._loop.call_soon_threadsafe(call)

    def _end(self, results: list[Result] | None, error: Exception | None) -> None:
        _settle(self._results, results or [], error)
        self._pieces.put_nowait(None)


def _settle(future: asyncio.Future[Any], value: Any, error: Exception | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
