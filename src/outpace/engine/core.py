"""The engine in this process: one thread steps the model, callers wait in their own loops."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch

from outpace.api.engine import LanguageModel, load
from outpace.api.prompt import read_prompts
from outpace.api.result import Result
from outpace.api.running import Job, finish
from outpace.api.starting import start
from outpace.engine.face import Ask, Face, Gone, Load, Piece, Ticket, Token, Traits
from outpace.errors import CapabilityError
from outpace.types import Outputs

__all__ = ["Engine"]


class _Ticket(Ticket):
    """Pieces cross from the engine's thread into the loop of whoever submitted."""

    def __init__(self, ask: Ask, loop: asyncio.AbstractEventLoop) -> None:
        self.ask, self.prompt_tokens, self.is_cancelled = ask, [], False
        self._loop, self._pieces = loop, asyncio.Queue[Piece | None]()
        self._results: asyncio.Future[list[Result]] = loop.create_future()
        self._results.add_done_callback(lambda done: done.cancelled() or done.exception())

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self._read()

    async def _read(self) -> AsyncIterator[Piece]:
        while (piece := await self._pieces.get()) is not None:
            yield piece
        await self.results()

    async def results(self) -> list[Result]:
        return await asyncio.shield(self._results)

    def cancel(self) -> None:
        self.is_cancelled = True

    def put(self, piece: Piece) -> None:
        """Hand over a piece; called in the engine's thread."""
        self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    def end(self, results: list[Result] | None, error: BaseException | None = None) -> None:
        """Hand over the end; called in the engine's thread."""

        def settle() -> None:
            if self._results.done():
                return
            if error is not None:
                self._results.set_exception(error)
            else:
                self._results.set_result(results or [])
            self._pieces.put_nowait(None)

        self._loop.call_soon_threadsafe(settle)


class Engine(Face):
    """A language model that many callers share.

    Args:
        model: a language model, or what `outpace.load` takes.
        **options: those of `outpace.load`, where it loads one.
    """

    def __init__(self, model: LanguageModel | str, **options: Any) -> None:
        lm = load(model, **options) if isinstance(model, str) else model
        offered = lm.target.capabilities
        self.lm, self.tokenizer = lm, lm.tokenizer
        self.traits = Traits(
            name=lm.name,
            context=offered.max_positions,
            vocab_size=offered.vocab_size,
            is_canvas=offered.is_canvas,
            is_encoder_decoder=offered.is_encoder_decoder,
            has_chat=lm.tokenizer is not None and lm.tokenizer.has_chat,
            created=int(time.time()),
            end_tokens=lm.end_tokens,
            has_hidden=offered.has_hidden,
        )
        self._load, self._work = Load(), queue.SimpleQueue[Callable[[], None] | None]()
        self._thread = threading.Thread(target=self._serve, name="outpace-engine", daemon=True)
        self._thread.start()

    async def submit(self, ask: Ask) -> Ticket:
        """As `Face.submit`."""
        ticket, taken = _Ticket(ask, asyncio.get_running_loop()), Future[None]()
        self._load.waiting += 1
        self._put(lambda: self._write(ticket, taken))
        await asyncio.wrap_future(taken)
        return ticket

    async def embed(self, texts: Sequence[Sequence[int]], pooling: str = "mean") -> list[list[float]]:
        """As `Face.embed`."""
        if not self.traits.has_hidden:
            raise CapabilityError("This model does not give its hidden states.", "Use a model that is loaded natively.")
        done = Future[list[list[float]]]()

        def run() -> None:
            try:
                done.set_result([self._embed(text, pooling) for text in texts])
            except Exception as error:
                done.set_exception(error)

        self._put(run)
        return await asyncio.wrap_future(done)

    async def load(self) -> Load:
        """As `Face.load`."""
        return self._load

    async def close(self, drain_s: float = 30.0) -> None:
        """As `Face.close`."""
        self._work.put(None)
        await asyncio.to_thread(self._thread.join, drain_s)
        self._load.is_alive = False

    def _put(self, work: Callable[[], None]) -> None:
        if not self._load.is_alive:
            raise Gone("The engine is closed.", "Start it again.")
        self._work.put(work)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def _write(self, ticket: _Ticket, taken: Future[None]) -> None:
        load, ask = self._load, ticket.ask
        load.waiting -= 1
        try:
            prompt: Any = ask.prompt
            if not isinstance(prompt, str) and prompt and not isinstance(prompt[0], int):
                prompt = self.lm.encode_chat(prompt, **ask.chat)
            job = start(self.lm, prompt, ask.arguments)
        except Exception as error:
            taken.set_exception(error)
            return
        ticket.prompt_tokens = job.plan.rows[0].source or job.plan.rows[0].tokens[: job.plan.rows[0].num_prompt]
        taken.set_result(None)
        try:
            self._step(job, ticket)
            ticket.end(finish(self.lm, job.plan, job.run.seconds))
        except Exception as error:
            ticket.end(None, error)

    def _step(self, job: Job, ticket: _Ticket) -> None:
        load, number = self._load, {id(row): index for index, row in enumerate(job.plan.rows)}
        load.prompt_tokens += len(ticket.prompt_tokens)
        while job.run.rows:
            load.running = len(job.run.rows)
            if ticket.is_cancelled:
                for row in list(job.run.rows):
                    row.cancel()
                    ticket.put(Piece(number[id(row)], [], "cancelled"))
                job.run.leave(list(job.run.rows))
                break
            for row, ids in job.run.step():
                piece = "" if row.text is None else row.text.release(is_final=row.finish is not None)
                sources = row.sources[len(row.sources) - len(ids) :]
                tokens = [Token(token, source=source) for token, source in zip(ids, sources, strict=True)]
                if tokens:
                    tokens[-1].text = piece
                load.written_tokens += len(ids)
                ending = None if row.finish is None else row.finish.value
                if ending is not None:
                    load.finished[ending] = load.finished.get(ending, 0) + 1
                if tokens or ending is not None:
                    ticket.put(Piece(number[id(row)], tokens, ending))
            load.steps += 1
        load.running = 0

    def _embed(self, text: Sequence[int], pooling: str) -> list[float]:
        (ids,), _ = read_prompts(list(text), self.lm.encode, self.lm.target.capabilities)
        target = self.lm.target
        tokens = torch.tensor([ids])
        position = torch.arange(len(ids)).unsqueeze(0)
        scores = target.score(tokens, position, None, target.new_cache(1, len(ids)), outputs=Outputs(has_last=True))
        assert scores.last is not None
        states = scores.last[0].double()
        vector = states.mean(0) if pooling == "mean" else states[-1]
        return [float(value) for value in vector / vector.norm().clamp(min=1e-12)]
