"""The engine in this process: one thread steps the model, callers wait in their own loops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Self

from outpace.api.engine import LanguageModel, load
from outpace.api.result import Result
from outpace.engine.entry import Sink
from outpace.engine.face import Ask, Face, Load, Ticket, Traits
from outpace.engine.limits import Limits
from outpace.engine.tickets import LoopTicket, Outbox
from outpace.engine.worker import Worker

__all__ = ["Engine", "read_traits"]


class Engine(Face):
    """A language model that many callers share: `async with outpace.Engine("stories") as engine: ...`.

    Args:
        model: a language model, or what `outpace.load` takes.
        limits: how much it takes upon itself at a time.
        **options: those of `outpace.load`, where it loads one.
    """

    def __init__(self, model: LanguageModel | str, *, limits: Limits | None = None, **options: Any) -> None:
        self.lm = load(model, **options) if isinstance(model, str) else model
        self.tokenizer, self._outbox = self.lm.tokenizer, Outbox()
        self._worker = Worker(self.lm, limits or Limits(), self._outbox.flush)
        self.traits = read_traits(self.lm, self._worker.context)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def submit(self, ask: Ask) -> Ticket:
        """As `Face.submit`."""
        ticket = LoopTicket(self._outbox)
        ticket.on_cancel = self._worker.take(ask, ticket)
        await ticket.wait_taken()
        return ticket

    async def embed(self, texts: Sequence[Sequence[int]], pooling: str = "mean") -> list[list[float]]:
        """As `Face.embed`."""
        return await asyncio.wrap_future(self._worker.embed(texts, pooling))

    async def load(self) -> Load:
        """As `Face.load`."""
        return self._worker.load()

    async def close(self, drain_s: float = 30.0) -> None:
        """As `Face.close`."""
        await asyncio.to_thread(self._worker.close, drain_s)

    def generate(self, ask: Ask) -> list[Result]:
        """Write what an ask wants and return its results, for callers without an event loop; from any thread.

        Raises:
            ConfigError, CapabilityError, Busy, Gone: as `submit`.
        """
        sink = _Waiting()
        self._worker.take(ask, sink)
        return sink.done.result()


class _Waiting(Sink):
    """Results that a thread waits for."""

    def __init__(self) -> None:
        self.done = Future[list[Result]]()

    def refused(self, error: Exception) -> None:
        self.done.set_exception(error)

    def end(self, results: list[Result] | None, error: Exception | None = None) -> None:
        if error is None:
            self.done.set_result(results or [])
        else:
            self.done.set_exception(error)


def read_traits(lm: LanguageModel, context: int) -> Traits:
    """Return what callers may know of a model, whose engine writes texts of up to `context` tokens."""
    offered = lm.target.capabilities
    return Traits(
        name=lm.name,
        context=context,
        vocab_size=offered.vocab_size,
        is_canvas=offered.is_canvas,
        is_encoder_decoder=offered.is_encoder_decoder,
        has_chat=lm.tokenizer is not None and lm.tokenizer.has_chat,
        created=int(time.time()),
        defaults={**lm.generation.law, **lm.generation.sampling},
        end_tokens=lm.end_tokens,
        has_hidden=offered.has_hidden and not offered.is_encoder_decoder,
        plain_method=offered.plain_method,
    )
