"""The thread that steps a model, and the ways into it. Knows nothing of event loops and processes."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from outpace.api.lawmaking import governed
from outpace.api.result import Result
from outpace.api.running import Plan
from outpace.api.scoring import check_causal, check_top
from outpace.api.starting import CHUNK, prepare
from outpace.arguments import ids, whole
from outpace.engine.entry import Entry, Sink
from outpace.engine.face import Ask, Busy, Gone, Load, Piece
from outpace.engine.limits import Limits
from outpace.engine.reading import check_embedding, embed_texts
from outpace.engine.scheduler import Scheduler
from outpace.errors import ConfigError, OutpaceError
from outpace.text.chat import is_chat

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = ["Worker"]

_PREPARING = 4  # asks that are checked at once, beside the model's thread
Vectors = list[list[float]]


class Worker:
    """A thread that serves a language model.

    Args:
        lm: the model.
        limits: how much at a time.
        flush: called in the thread after every turn, for sinks that gather what they were told.

    Attributes:
        beats: turns so far; where `is_busy`, they go on.
    """

    def __init__(self, lm: LanguageModel, limits: Limits, flush: Callable[[], None] = lambda: None) -> None:
        self.lm, self.limits, self.beats = lm, limits, 0
        self._scheduler, self._flush = Scheduler(lm, limits), flush
        self._inbox = queue.SimpleQueue[Callable[[], None]]()
        self._tasks: list[tuple[Generator[None, None, Vectors], Future[Vectors]]] = []
        self._arrivals, self._held, self._lock = itertools.count(), 0, threading.Lock()
        self._is_closing, self._is_drained = False, False
        self._pool = ThreadPoolExecutor(_PREPARING, "outpace-prepare")
        self._thread = threading.Thread(target=self._serve, name="outpace-engine", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether anything is being done, or waits for it."""
        return not self._scheduler.is_idle or bool(self._tasks) or not self._inbox.empty()

    @property
    def context(self) -> int:
        """Most tokens of a prompt and its text together."""
        return self._scheduler.context

    def take(self, ask: Ask, sink: Sink) -> Callable[[], None]:
        """Check an ask and take it in, as `sink` is told; from any thread.

        Returns:
            What cancels it, from any thread.

        Raises:
            Busy: the queue is full.
            Gone: the engine is closed.
        """
        with self._lock:
            if self._is_closing:
                raise _gone()
            if self._held - self._scheduler.num_begun >= self.limits.max_queue + self._scheduler.num_free:
                retry_s = self._scheduler.meter.retry_s()
                raise Busy("The queue is full.", f"Ask again in {retry_s:.1f} seconds.", retry_s)
            self._held += 1
            handle = _Handle(self, sink)
            self._pool.submit(self._prepare, ask, handle, next(self._arrivals), time.monotonic())
        return handle.cancel

    def embed(self, texts: Sequence[Sequence[int]], pooling: str) -> Future[Vectors]:
        """Return the vectors of texts, once they are there; from any thread.

        Raises:
            ConfigError, CapabilityError: they cannot be had.
            Gone: the engine is closed.
        """
        texts = [ids("a text", text) for text in texts]
        check_embedding(self.lm.target, texts, pooling)
        done = Future[Vectors]()
        task = embed_texts(self.lm.target, texts, pooling, CHUNK)
        with self._lock:
            if self._is_closing:
                raise _gone()
            self._inbox.put(lambda: self._tasks.append((task, done)))
        return done

    def load(self) -> Load:
        """Return what it holds and has done; from any thread."""
        load = self._scheduler.meter.read()
        load.is_alive = not self._is_closing
        return load

    def close(self, drain_s: float) -> None:
        """Take nothing more in, give what runs so many seconds to end, cancel the rest, and end the thread."""
        with self._lock:
            self._is_closing = True
        self._pool.shutdown()  # what was taken is in the inbox now
        self._is_drained = True
        self.wake()
        self._thread.join(drain_s)
        self._inbox.put(self._cancel_all)
        self._thread.join()

    def wake(self) -> None:
        """Let the thread look for what was cancelled."""
        self._inbox.put(lambda: None)

    def release(self) -> None:
        """Count an ask that has ended."""
        with self._lock:
            self._held -= 1

    # 1) Beside the thread: an ask is checked

    def _prepare(self, ask: Ask, handle: _Handle, arrival: int, arrived: float) -> None:
        try:
            lm = governed(self.lm, ask.arguments.get("law"))
            entry = Entry(ask, lm, _plan(lm, ask), handle, arrival, arrived)
            self._scheduler.check(entry)
        except Exception as error:
            handle.refused(error)
            return
        row = entry.plan.rows[0]
        handle.bind(entry)
        handle.taken(row.tokens[: row.num_prompt] if row.source is None else row.source)
        self._inbox.put(lambda: self._scheduler.add(entry))

    # 2) In the thread

    def _serve(self) -> None:
        while True:
            try:
                is_waiting = not self._receive()
                if is_waiting and self._is_drained:
                    return
                if not is_waiting:
                    self.beats += 1
                    self._turn()
            except Exception as error:  # none is known to come this far; if one does, others are served on
                sentence = f"The engine failed ({type(error).__name__}: {error})."
                self._scheduler.fail(OutpaceError(sentence, "Ask again; if it comes back, report it."))
            self._flush()

    def _receive(self) -> bool:
        """Take in what has come, waiting for it where there is nothing else to do; return whether there is now."""
        with contextlib.suppress(queue.Empty):
            self._inbox.get(block=not (self._is_working or self._is_drained))()
            while True:
                self._inbox.get_nowait()()
        return self._is_working

    @property
    def _is_working(self) -> bool:
        return not self._scheduler.is_idle or bool(self._tasks)

    def _turn(self) -> None:
        self._scheduler.turn()
        if not self._tasks:
            return
        task, done = self._tasks[0]
        try:
            if done.cancelled():
                task.close()
            next(task)
        except StopIteration as ended:
            self._tasks.pop(0)
            if done.set_running_or_notify_cancel():
                done.set_result(ended.value)
        except Exception as error:
            self._tasks.pop(0)
            if done.set_running_or_notify_cancel():
                done.set_exception(error)

    def _cancel_all(self) -> None:
        for entry in self._scheduler.entries:
            entry.is_cancelled = True
        for _, done in self._tasks:
            done.cancel()


class _Handle(Sink):
    """A sink whose ask can be cancelled before it is taken, and is counted until it ends."""

    def __init__(self, worker: Worker, sink: Sink) -> None:
        self._worker, self._sink, self._is_cancelled = worker, sink, False
        self._entry: Entry | None = None

    def cancel(self) -> None:
        self._is_cancelled = True
        if self._entry is not None:
            self._entry.is_cancelled = True
            self._worker.wake()

    def bind(self, entry: Entry) -> None:
        self._entry = entry
        entry.is_cancelled = self._is_cancelled

    def taken(self, prompt_tokens: Sequence[int]) -> None:
        self._sink.taken(prompt_tokens)

    def refused(self, error: Exception) -> None:
        self._worker.release()
        self._sink.refused(error)

    def put(self, piece: Piece) -> None:
        self._sink.put(piece)

    def end(self, results: list[Result] | None, error: Exception | None = None) -> None:
        self._worker.release()
        self._sink.end(results, error)


def _plan(lm: LanguageModel, ask: Ask) -> Plan:
    """Return what is to be written.

    Raises:
        ConfigError, CapabilityError: it cannot be.
    """
    prompt: Any = ask.prompt
    if is_chat(prompt):
        prompt = lm.encode_chat(prompt, **ask.chat)
    elif ask.chat:
        raise ConfigError(f"A prompt that is no conversation came with {next(iter(ask.chat))!r}.", "Leave it out.")
    arguments = dict(ask.arguments)
    record = arguments.get("record") or ()
    if arguments.get("top_log_probs") and isinstance(record, (str, list, tuple)):  # the token's own goes with them
        arguments["record"] = sorted({*([record] if isinstance(record, str) else record), "log_probs"}, key=str)
    if ask.prompt_log_probs is not None:
        check_causal(lm.target.capabilities)
        if (num := whole("prompt_log_probs", ask.prompt_log_probs)) < 0:
            raise ConfigError(f"prompt_log_probs is {num}.", "It must be 0 or more.")
        check_top(num, lm.target.capabilities)
    plan = prepare(lm, prompt, arguments)
    if len(plan.shown) != plan.num_texts:
        raise ConfigError("An ask has one prompt.", "Submit one ask per prompt.")
    return plan


def _gone() -> Gone:
    return Gone("The engine is closed.", "Start it again.")
