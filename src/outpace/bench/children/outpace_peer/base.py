"""What an engine has to offer, and how a generation is described on both sides of the pipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Engine", "Failure", "Job", "Request", "finish"]


class Failure(Exception):
    """Something cannot be done here; the text is a sentence for the user."""


@dataclass(frozen=True)
class Job:
    """One mode of an engine on one model.

    Attributes:
        directory: the model, as the engine reads it.
        mode: "plain" or "prompt-lookup".
        precision: "float32", "bfloat16", "int8" or "int4".
        threads: to compute with.
        capacity: the longest text, prompt included.
        vocab_size: ids.
    """

    directory: str
    mode: str
    precision: str
    threads: int
    capacity: int
    vocab_size: int


@dataclass(frozen=True)
class Request:
    """One generation to make; fields as in `outpace.bench.arms.Request`."""

    ids: list[int]
    max_tokens: int
    temperature: float
    seed: int
    end_tokens: list[int]


class Engine(Protocol):
    """An inference engine."""

    def versions(self) -> dict[str, str]:
        """Import the engine and return its packages' versions."""
        ...

    def convert(self, source: str, target: str, precision: str) -> None:
        """Write the model at `source` in a precision to `target`."""
        ...

    def open(self, job: Job) -> None:
        """Load a model; `run` may then be called."""
        ...

    def run(self, task: Request) -> dict[str, Any]:
        """Make one generation, from empty memory; see `finish` for what it returns."""
        ...


def finish(
    tokens: list[int], task: Request, times: tuple[float, float, float], first: int, forwards: int
) -> dict[str, Any]:
    """Return a generation as the parent reads it.

    Args:
        tokens: as the engine wrote them, perhaps past the true stop.
        task: what was asked.
        times: when it began, when its first tokens were there, when it ended, in seconds.
        first: how many tokens came first; they count as prefill, time and tokens alike.
        forwards: of the target.
    """
    tokens = tokens[: task.max_tokens]
    end = next((at for at, token in enumerate(tokens) if token in task.end_tokens), None)
    tokens = tokens if end is None else tokens[: end + 1]
    return {
        "tokens": tokens,
        "prefill_s": times[1] - times[0],
        "decode_s": times[2] - times[1],
        "num_decoded": max(0, len(tokens) - first),
        "finish": "length" if end is None else "eos",
        "forwards": forwards,
    }
