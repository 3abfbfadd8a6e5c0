"""Answers as server-sent events: no faster than the client reads, and no longer than it listens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import orjson
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from outpace.engine.face import Piece, Ticket
from outpace.server.errors import Refused, error_body, refusal
from outpace.server.serving import Serving, disconnected, too_slow

__all__ = ["DONE", "Events", "event", "pieces"]

DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"
_LOG = logging.getLogger("outpace.server")


def event(data: Any, name: str = "") -> bytes:
    """Return one event; named ones are Anthropic's and those of /v1/responses."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + orjson.dumps(data, option=orjson.OPT_NON_STR_KEYS) + b"\n\n"


class Events(Response):
    """A stream of events. Its asks are cancelled when the client goes away, reads too slowly or the time is up.

    Args:
        frames: what `event` returned, and `DONE` where the form ends so.
        serving: where the request's asks are known.
        request: the request.
        on_error: makes the last frames out of an error in mid-stream; None = as OpenAI's clients read it.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        serving: Serving,
        request: Request,
        on_error: Callable[[Refused], bytes] | None = None,
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._frames, self._serving, self._request = frames, serving, request
        self._on_error = on_error or self._tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        del scope
        gone = asyncio.ensure_future(disconnected(receive))
        sender = asyncio.ensure_future(self._send(send))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            # Beyond the time that a text may take, a client gets as much again to read what is left.
            await asyncio.wait(
                {gone, sender},
                timeout=2 * self._serving.settings.timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if sender.done():
                sender.result()
        finally:
            for task in (gone, sender):
                task.cancel()
            await asyncio.gather(gone, sender, return_exceptions=True)
            self._serving.release(self._request)

    async def _send(self, send: Send) -> None:
        async for frame in self._until_late():
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _until_late(self) -> AsyncIterator[bytes]:
        """Yield the frames, pings in silence, and an error as the last frame."""
        settings = self._serving.settings
        end = asyncio.get_running_loop().time() + settings.timeout_s
        try:
            while True:
                following = _begun(self._frames)
                try:
                    while not following.done():
                        left = end - asyncio.get_running_loop().time()
                        await asyncio.wait({following}, timeout=max(0.0, min(settings.ping_s, left)))
                        if not following.done():
                            if left <= 0:
                                raise too_slow(settings)
                            yield _PING
                    yield following.result()
                finally:
                    following.cancel()
        except StopAsyncIteration:
            return
        except Exception as error:
            refused = refusal(error)
            if refused.status_code == 500:
                _LOG.error("%s failed", self._request.state.request_id, exc_info=error)
            yield self._on_error(refused)

    def _tell(self, refused: Refused) -> bytes:
        return event(error_body(refused, "", self._request.state.request_id)) + DONE


async def pieces(tickets: Sequence[Ticket]) -> AsyncIterator[tuple[int, Piece]]:
    """Yield the pieces of several tickets as they come, each with its ticket's number."""
    if len(tickets) == 1:
        async for piece in tickets[0]:
            yield 0, piece
        return
    waiting = {_begun(found): (index, found) for index, found in enumerate(map(aiter, tickets))}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda one: waiting[one][0]):
                index, found = waiting.pop(task)
                try:
                    piece = task.result()
                except StopAsyncIteration:
                    continue
                waiting[_begun(found)] = index, found
                yield index, piece
    finally:
        for task in waiting:
            task.cancel()


def _begun(found: AsyncIterator[Any]) -> asyncio.Future[Any]:
    """Return what comes next, on its way; nobody need look at it, since a client may be gone by then."""
    following = asyncio.ensure_future(anext(found))
    following.add_done_callback(lambda done: done.cancelled() or done.exception())
    return following
