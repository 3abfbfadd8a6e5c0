"""Servers on loopback, and an engine that does what a test says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager

from outpace.api.result import Result
from outpace.engine.face import Ask, Face, Load, Piece, Ticket, Token, Traits
from outpace.run.row import Usage
from outpace.server.listening import address, bind, server
from outpace.server.settings import ServerSettings

PATIENCE_S = 60


@contextmanager
def listening(engines: Mapping[str, Face], settings: ServerSettings | None = None) -> Iterator[str]:
    """Serve in a thread; yield the URL."""
    ready, bound = threading.Event(), bind("127.0.0.1", 0)
    made = server(engines, settings or ServerSettings(drain_s=1), ready.set)
    thread = threading.Thread(target=lambda: asyncio.run(made.serve(sockets=[bound])))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield address(bound)
    finally:
        made.should_exit = True
        thread.join(PATIENCE_S)
        bound.close()
        assert not thread.is_alive()


class Scripted(Face):
    """Writes what it is told, when it is told.

    Args:
        refuses: raised by every ask.
        words: written at once, one token each.
        ends: the text ends behind the words; else only when it is cancelled.
    """

    def __init__(
        self, words: Sequence[str] = (), *, ends: bool = False, refuses: Exception | None = None, finish: str = "length"
    ) -> None:
        self.traits, self.tokenizer = Traits(name="scripted", context=1 << 20, vocab_size=100), None
        self.words, self.ends, self.refuses, self.finish = words, ends, refuses, finish
        self.asks: list[Ask] = []
        self.taken, self.cancelled = threading.Event(), threading.Event()
        self.is_alive = True

    async def submit(self, ask: Ask) -> Ticket:
        if self.refuses is not None:
            raise self.refuses
        self.asks.append(ask)
        self.taken.set()
        return _Scripted(self)

    async def embed(self, texts: Sequence[Sequence[int]], pooling: str = "mean") -> list[list[float]]:
        return [[1.0] for _ in texts]

    async def load(self) -> Load:
        return Load(is_alive=self.is_alive)

    async def close(self, drain_s: float = 30.0) -> None:
        self.is_alive = False


class Stand(Face):
    """Stands before one scripted engine, then before another."""

    def __init__(self) -> None:
        self.face = Scripted()
        self.traits, self.tokenizer = self.face.traits, None

    async def submit(self, ask: Ask) -> Ticket:
        return await self.face.submit(ask)

    async def embed(self, texts: Sequence[Sequence[int]], pooling: str = "mean") -> list[list[float]]:
        return await self.face.embed(texts, pooling)

    async def load(self) -> Load:
        return await self.face.load()

    async def close(self, drain_s: float = 30.0) -> None:
        await self.face.close(drain_s)


class _Scripted(Ticket):
    def __init__(self, face: Scripted) -> None:
        self.face, self.prompt_tokens = face, [1]
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self.is_cancelled = False
        if face.ends:
            self._over.set()

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self._read()

    async def _read(self) -> AsyncIterator[Piece]:
        for word in self.face.words:
            yield Piece(0, [Token(7, word)])
        await self._over.wait()
        yield Piece(0, [], "cancelled" if self.is_cancelled else self.face.finish)

    async def results(self) -> list[Result]:
        await self._over.wait()
        finish = "cancelled" if self.is_cancelled else self.face.finish
        words = list(self.face.words)
        return [
            Result(
                "scripted", "plain", [1], [7] * len(words), "".join(words), finish, Usage(), {}, 0, notes=["A note."]
            )
        ]

    def cancel(self) -> None:
        if not self._over.is_set():
            self.is_cancelled = True
            self.face.cancelled.set()
            self._loop.call_soon_threadsafe(self._over.set)
