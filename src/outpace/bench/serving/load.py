"""A closed loop: each client asks, reads, and asks again; and what came of it."""

from __future__ import annotations

import math
import queue
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outpace.bench.serving.client import Answer, Client, LostError
from outpace.bench.serving.traffic import COMPLETIONS
from outpace.errors import OutpaceError

__all__ = ["Load", "percentile", "run_load", "run_threads"]


@dataclass(frozen=True, slots=True)
class Load:
    """A closed loop that ended.

    Attributes:
        answers: in the order of the bodies.
        seconds: from the first request to the end of the last answer.
    """

    answers: Sequence[Answer]
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens written per second, all clients together."""
        return sum(answer.num_tokens for answer in self.answers) / self.seconds

    @property
    def requests_per_s(self) -> float:
        """Answers per second."""
        return len(self.answers) / self.seconds

    def figures(self) -> dict[str, float]:
        """Return what clients felt, in milliseconds; NaN where nothing was streamed."""
        gaps = [gap for answer in self.answers for gap in answer.gaps_s]
        firsts = [answer.first_s for answer in self.answers]
        each = [answer.token_s for answer in self.answers if not math.isnan(answer.token_s)]
        return {
            "first_p50_ms": 1e3 * percentile(firsts, 0.5),
            "first_p99_ms": 1e3 * percentile(firsts, 0.99),
            "gap_p50_ms": 1e3 * percentile(gaps, 0.5),
            "gap_p99_ms": 1e3 * percentile(gaps, 0.99),
            "token_ms": 1e3 * (statistics.median(each) if each else math.nan),
        }


def run_load(url: str, model: str, bodies: Sequence[Mapping[str, Any]], clients: int, *, streams: bool = True) -> Load:
    """Send requests from a number of clients, each its next one when its last is answered.

    Args:
        url: of the server.
        model: as it calls the model.
        bodies: of requests to /v1/completions.
        clients: side by side.
        streams: ask for streams, with the usage at their end.

    Raises:
        OutpaceError: a request was refused or lost; a figure without it would be none.
    """
    extra: dict[str, Any] = {"model": model}
    if streams:
        extra |= {"stream": True, "stream_options": {"include_usage": True}}
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(bodies)):
        waiting.put(number)
    answers: list[Answer | None] = [None] * len(bodies)

    def serve() -> None:
        client = Client(url)
        try:
            while True:
                number = waiting.get_nowait()
                answers[number] = _checked(client.post(COMPLETIONS, {**bodies[number], **extra}))
        except queue.Empty:
            pass
        finally:
            client.close()

    began = time.perf_counter()
    run_threads([serve] * clients)
    seconds = time.perf_counter() - began
    return Load([answer for answer in answers if answer is not None], seconds)


def run_threads(works: Sequence[Callable[[], None]]) -> None:
    """Run functions side by side and wait for all; raise what one of them raised.

    Raises:
        OutpaceError: an answer was lost.
    """
    errors: list[Exception] = []

    def guard(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=guard, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if isinstance(error, LostError):
            raise OutpaceError(f"An answer was lost: {error}.", "See what the server says.") from None
        raise error


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of all do not exceed (nearest rank); NaN without values."""
    known = sorted(value for value in values if not math.isnan(value))
    return known[max(0, math.ceil(share * len(known)) - 1)] if known else math.nan


def _checked(answer: Answer) -> Answer:
    if answer.status == 200 and not answer.error and answer.usage:
        return answer
    said = answer.error.get("message", "no usage was told") if answer.status == 200 or answer.error else ""
    raise OutpaceError(f"The server answered {answer.status}: {said or 'nothing'}", "Requests have to be understood.")
