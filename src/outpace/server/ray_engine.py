"""An engine whose replicas live on Ray: the replica, and the face that the server's application sees."""

from __future__ import annotations

import asyncio
import importlib
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from outpace.api.result import Result
from outpace.engine.face import Ask, Busy, Face, Gone, Histogram, Load, Piece, Ticket, Traits
from outpace.errors import OutpaceError
from outpace.models.opening import locate
from outpace.text.tokenizer import Tokenizer

__all__ = ["RayEngine", "Replica", "add_loads"]

_ANSWER_S = 10.0  # for a question to all replicas
_COUNTS = tuple(field.name for field in fields(Load) if field.type == "int")


class Replica:
    """An engine in a process of its own, somewhere in the cluster; Ray Serve makes as many as it needs.

    Args:
        name: of the model, as clients call it.
        model: as `outpace.load` takes it.
        load: arguments of `outpace.load`.
        rows: samples side by side.
    """

    def __init__(self, name: str, model: str, load: Mapping[str, Any], rows: int) -> None:
        from outpace.engine.core import Engine
        from outpace.engine.limits import Limits

        self._engine: Face = Engine(model, limits=Limits(max_rows=rows), **load)
        self._tickets = dict[str, Ticket]()
        gauge = importlib.import_module("ray.util.metrics").Gauge
        self._gauges = {
            count: gauge(f"outpace_{count}", f"{count} of an engine's load.", ("model",)) for count in _COUNTS
        }
        for found in self._gauges.values():
            found.set_default_tags({"model": name})

    async def write(self, ask: Ask, key: str) -> AsyncIterator[list[int] | Piece | list[Result] | OutpaceError]:
        """Yield the prompt's tokens, the pieces, the results; an error in place of what it prevents.

        Args:
            ask: what to write.
            key: by which it can be cancelled.
        """
        try:
            ticket = self._tickets[key] = await self._engine.submit(ask)
            yield ticket.prompt_tokens
            async for piece in ticket:
                yield piece
            yield await ticket.results()
        except OutpaceError as error:
            yield error
        finally:
            self.cancel(key)

    def cancel(self, key: str) -> None:
        """Stop what is written under this key, if it is written here."""
        if (ticket := self._tickets.pop(key, None)) is not None:
            ticket.cancel()

    async def embed(self, texts: list[list[int]], pooling: str) -> list[list[float]] | OutpaceError:
        """As `Face.embed`, but that an error is returned."""
        try:
            return await self._engine.embed(texts, pooling)
        except OutpaceError as error:
            return error

    def traits(self) -> Traits:
        """Return the model's traits."""
        return self._engine.traits

    async def load(self) -> Load:
        """Return what this replica holds and has done."""
        return await self._engine.load()

    async def check_health(self) -> None:
        """Raise where the engine is dead, whereupon Ray Serve replaces the replica; report what it does.

        Raises:
            Gone: it is.
        """
        load = await self._engine.load()
        for count, gauge in self._gauges.items():
            gauge.set(getattr(load, count))
        if not load.is_alive:
            raise Gone("The engine is dead.")


class _Ticket(Ticket):
    """Pieces come from Ray's stream as they arrive, whether anyone iterates or not."""

    def __init__(self, stream: Any, engine: RayEngine, key: str) -> None:
        self.prompt_tokens = []
        self._stream, self._engine, self._key = stream, engine, key
        self._loop = asyncio.get_running_loop()
        self._pieces = asyncio.Queue[Piece | None]()
        self._results: asyncio.Future[list[Result]] = self._loop.create_future()
        self._results.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._pump: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Wait until it is taken.

        Raises:
            OutpaceError: it is not.
        """
        try:
            self.prompt_tokens = await self._next()
        except BaseException:
            self._stream.cancel()
            raise
        self._pump = asyncio.ensure_future(self._read())

    async def _next(self) -> Any:
        """Return what comes next on the stream; raise what it says went wrong."""
        try:
            found = await anext(self._stream)
        except StopAsyncIteration:
            raise Gone("The replica ended before its text.", "Ask again.") from None
        except Exception as error:
            raise self._engine.explain(error) from None
        if isinstance(found, OutpaceError):
            raise found
        return found

    async def _read(self) -> None:
        try:
            while isinstance(found := await self._next(), Piece):
                self._pieces.put_nowait(found)
            self._results.set_result(found)
        except OutpaceError as error:
            self._results.set_exception(error)
        finally:
            self._pieces.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[Piece]:
        while (piece := await self._pieces.get()) is not None:
            yield piece
        await self.results()

    async def results(self) -> list[Result]:
        return await asyncio.shield(self._results)

    def cancel(self) -> None:
        if not self._results.done():
            self._loop.call_soon_threadsafe(self._engine.cancel, self._key)


class RayEngine(Face):
    """The replicas of one model as one engine.

    Args:
        model: as `outpace.load` takes it; its tokenizer works on this side.
        handle: Ray Serve's, of the replicas' deployment.
    """

    def __init__(self, model: str, handle: Any) -> None:
        self.tokenizer = Tokenizer.from_directory(locate(model)[0])
        self._handle, self._faults = handle, importlib.import_module("ray.serve.exceptions")
        self._sent = set[asyncio.Task[Any]]()

    async def start(self) -> None:
        """Wait for a replica, and learn from it what the model is."""
        self.traits = await self._handle.traits.remote()

    async def submit(self, ask: Ask) -> Ticket:
        """As `Face.submit`."""
        key = uuid.uuid4().hex
        stream = self._handle.options(stream=True).write.remote(ask, key)
        ticket = _Ticket(stream, self, key)
        await ticket.begin()
        return ticket

    async def embed(self, texts: Sequence[Sequence[int]], pooling: str = "mean") -> list[list[float]]:
        """As `Face.embed`."""
        try:
            found = await self._handle.embed.remote([list(text) for text in texts], pooling)
        except Exception as error:
            raise self.explain(error) from None
        if isinstance(found, OutpaceError):
            raise found
        vectors: list[list[float]] = found
        return vectors

    async def load(self) -> Load:
        """Return what all replicas hold and have done, added up."""
        return add_loads([load for load in await self._ask_all("load") if isinstance(load, Load)])

    async def close(self, drain_s: float = 30.0) -> None:
        """Do nothing: Ray Serve ends the replicas."""

    def cancel(self, key: str) -> None:
        """Stop what is written under a key, wherever that is; called in the loop."""
        task = asyncio.ensure_future(self._ask_all("cancel", key))
        self._sent.add(task)
        task.add_done_callback(self._sent.discard)

    async def _ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every replica; return what came back, errors among it, or nothing where none answers."""
        try:
            sent = self._handle.broadcast(method, *arguments)
            found: list[Any] = await sent.results_async(timeout_s=_ANSWER_S, return_exceptions=True)
            return found
        except Exception:  # whatever keeps all of them from answering
            return []

    def explain(self, error: Exception) -> OutpaceError:
        """Return in our terms what Ray says went wrong."""
        if isinstance(error, self._faults.BackPressureError):
            return Busy("The queue is full.", "Ask again later.")
        if isinstance(error, OutpaceError):
            return error
        return Gone(f"The replica that wrote this is gone ({type(error).__name__}).", "Ask again.")


def add_loads(loads: Sequence[Load]) -> Load:
    """Return the sum of what several engines hold and have done; alive where one of them is."""
    total = Load(is_alive=any(load.is_alive for load in loads))
    for load in loads:
        for count in _COUNTS:
            setattr(total, count, getattr(total, count) + getattr(load, count))
        size = max(len(total.accepted_at), len(load.accepted_at))
        padded = [(held + [0] * size)[:size] for held in (total.accepted_at, load.accepted_at)]
        total.accepted_at = [sum(pair) for pair in zip(*padded, strict=True)]
        for reason, times in load.finished.items():
            total.finished[reason] = total.finished.get(reason, 0) + times
        for name, seen in load.seconds.items():
            held = total.seconds.setdefault(name, Histogram(seen.bounds))
            held.counts = [a + b for a, b in zip(held.counts, seen.counts, strict=True)]
            held.total += seen.total
    total.page_size = max((load.page_size for load in loads), default=0)
    return total
