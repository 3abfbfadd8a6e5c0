"""What every route shares: the engines by name, the limits, and the requests that are being served."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Depends, Request, Response
from starlette.types import Receive

from outpace.engine.face import Ask, Face, Ticket
from outpace.errors import nearest
from outpace.server.errors import Refused
from outpace.server.settings import ServerSettings

__all__ = ["Served", "Serving", "disconnected", "json_response"]

_Found = TypeVar("_Found")


class Serving:
    """The engines of a server and what runs on them.

    Args:
        engines: by the name that requests use.
        settings: limits and defaults.
    """

    def __init__(self, engines: Mapping[str, Face], settings: ServerSettings) -> None:
        self.engines, self.settings = dict(engines), settings
        self._running: dict[str, list[Ticket]] = {}  # by request id

    def engine(self, name: str | None) -> Face:
        """Return the engine of a model; without a name, of the only one.

        Raises:
            Refused: 404, there is no such model here; 400, no name and several models.
        """
        if not name and len(self.engines) == 1:
            return next(iter(self.engines.values()))
        if not name:
            raise Refused(400, f"Name a model: {', '.join(self.engines)}.", param="model", code="missing_model")
        if name not in self.engines:
            hint = nearest(name[:200], self.engines, "model")
            raise Refused(404, f"There is no model {name[:200]!r} here. {hint}", param="model", code="model_not_found")
        return self.engines[name]

    async def submit(self, engine: Face, ask: Ask, request: Request) -> Ticket:
        """Hand an ask to an engine; it can be aborted by the request's id from now on.

        Raises:
            ConfigError, CapabilityError, Busy, Gone: as `Face.submit`; the app tells the client.
        """
        ticket = await engine.submit(ask)
        request.state.tickets.append(ticket)
        self._running.setdefault(request.state.request_id, []).append(ticket)
        return ticket

    async def submit_all(self, engine: Face, asks: Sequence[Ask], request: Request) -> list[Ticket]:
        """Hand over several asks; all of them, or none runs on."""
        submitting = (self.submit(engine, ask, request) for ask in asks)
        taken = await asyncio.gather(*submitting, return_exceptions=True)
        for one in taken:
            if isinstance(one, BaseException):
                self.release(request)
                raise one
        return [one for one in taken if isinstance(one, Ticket)]

    def release(self, request: Request) -> None:
        """Forget a request; what still runs of it is cancelled, and nothing of another that has the same id."""
        name, own = request.state.request_id, request.state.tickets
        for ticket in own:
            ticket.cancel()
        others = [ticket for ticket in self._running.pop(name, ()) if ticket not in own]
        if others:
            self._running[name] = others

    def abort(self, request_id: str) -> int:
        """Cancel what runs under a request's id; return how many asks that were."""
        tickets = self._running.get(request_id, [])
        for ticket in tickets:
            ticket.cancel()
        return len(tickets)

    async def finish(self, request: Request, work: Awaitable[_Found]) -> _Found:
        """Wait for the answer of a request that is not streamed; its asks end with it, whatever happens.

        Raises:
            Refused: 499, the client went away; 408, it took too long.
        """
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(request.receive))
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Refused(499, "The client went away.", code="client_gone")
            return task.result()
        except TimeoutError:
            raise too_slow(self.settings) from None
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)
            self.release(request)

    async def close(self) -> None:
        """Let the engines end what runs, then free them."""
        await asyncio.gather(*(engine.close(self.settings.drain_s) for engine in self.engines.values()))


def too_slow(settings: ServerSettings) -> Refused:
    """Return the refusal of a request that took longer than the server allows."""
    return Refused(
        408, f"The request took longer than {settings.timeout_s:g} s. Ask for fewer tokens.", code="timeout", retry_s=1
    )


async def disconnected(receive: Receive) -> None:
    """Wait until the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return plain data as an answer; numbers that JSON cannot hold become null."""
    return Response(orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS), status, headers, "application/json")


def _serving(request: Request) -> Serving:
    found: Serving = request.app.state.serving
    return found


Served = Annotated[Serving, Depends(_serving)]
