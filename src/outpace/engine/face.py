"""What callers and engines hand to each other: plain data, so that an engine may live in another process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outpace.api.result import Result
from outpace.errors import OutpaceError
from outpace.text.tokenizer import Tokenizer

__all__ = ["FAULT", "Ask", "Busy", "Face", "Gone", "Histogram", "Load", "Piece", "Ticket", "Token", "Traits"]

FAULT = "The engine failed on this text"  # begins the note of a sample that ended so, for no fault of its caller's


class Busy(OutpaceError):
    """The engine takes no more for now; `retry_s` says when to ask again, in seconds."""

    def __init__(self, message: str, hint: str = "", retry_s: float = 1.0) -> None:
        super().__init__(message, hint)
        self.retry_s = retry_s


class Gone(OutpaceError):
    """The engine died, or is closing: what it held has failed, and it may be asked again once it is back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One prompt and what is wanted of it.

    Attributes:
        prompt: text, token ids, or messages ({"role": ..., "content": ...} each) that the chat template frames.
        arguments: fields of `outpace.api.request.Request` and of `Sampling` by name, as JSON has them; the method and
            its options among them. What is not given is as the model's files ask.
        id: told apart from others by it; the caller's own.
        priority: lower is served first; equal ones in the order of arrival.
        chat: what `LanguageModel.encode_chat` takes beside messages (tools, documents, template, variables, ...).
        prompt_log_probs: None = not wanted; else the log-probability of every prompt token after those before it, with
            this many of the likeliest in its place.
        is_traced: pieces say what each step did.
        salt: asks share what the cache holds of their prompts only where their salts are equal.
    """

    prompt: str | Sequence[int] | Sequence[Mapping[str, Any]]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    priority: int = 0
    chat: Mapping[str, Any] = field(default_factory=dict)
    prompt_log_probs: int | None = None
    is_traced: bool = False
    salt: str = ""


@dataclass(slots=True)
class Token:
    """One final token.

    Attributes:
        id: the token.
        text: what became final with it: "" while a character or a possible stop string is open; the text behind an
            open end comes with the last token.
        source: "plain", "draft", "recovered" or "bonus".
        drafter: who drafted it; "" where nobody did.
        log_prob: natural log-probability under the model's own law; None unless `record` or `top_log_probs` asks.
        top: the likeliest tokens in its place, with theirs; empty unless `top_log_probs` asks.
    """

    id: int
    text: str = ""
    source: str = "plain"
    drafter: str = ""
    log_prob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)


@dataclass(slots=True)
class Piece:
    """What one step made final of one sample.

    Attributes:
        sample: its number, from 0.
        tokens: in order.
        finish: why the sample ended ("eos", "stop", "length", "cancelled", "error"); None while it runs.
        step: where traced: {"proposed": nodes, "accepted": drafts kept, "drafter": name, "tokens": drafted ids,
            "parents": of each, -1 = the root}.
        rest: text behind an open end, where the sample ended without a further token (cancelled, or an error).
    """

    sample: int
    tokens: list[Token]
    finish: str | None = None
    step: dict[str, Any] | None = None
    rest: str = ""


class Ticket(ABC):
    """An ask that was taken: iterate over its pieces, or wait for its results. Not iterating loses nothing.

    Attributes:
        prompt_tokens: the prompt's ids.
    """

    prompt_tokens: list[int]

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[Piece]:
        """Yield pieces as they become final; ends when all samples have ended.

        Raises:
            Gone: the engine died meanwhile.
        """

    @abstractmethod
    async def results(self) -> list[Result]:
        """Wait for the end; one result per sample. A cancelled sample's holds what was written.

        `Result.cached_tokens` are the prompt tokens found in the cache, `Result.steps` (drafted, accepted) per step of
        the sample, and `Result.prompt_log_probs` what `Ask.prompt_log_probs` asked for: per prompt token None (the
        first) or its log-probability and the likeliest tokens with theirs.

        Raises:
            Gone: the engine died meanwhile.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Stop writing at the next step; callable from any thread, and more than once."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a caller may know of the model.

    Attributes:
        name: as results and the server call it.
        context: most tokens of prompt and text together, as the model and the cache allow.
        vocab_size: V.
        is_canvas: a masked model; it fills gaps, and `Request.canvas` is for it.
        is_encoder_decoder: the prompt goes through an encoder.
        has_chat: it has a chat template.
        created: when it was loaded, in seconds since 1970.
        defaults: what its generation_config.json asks for, by argument.
        end_tokens: ids that end a text.
        has_hidden: texts can be embedded.
        plain_method: what plain decoding is called on such a model.
    """

    name: str
    context: int
    vocab_size: int
    is_canvas: bool = False
    is_encoder_decoder: bool = False
    has_chat: bool = False
    created: int = 0
    defaults: Mapping[str, Any] = field(default_factory=dict)
    end_tokens: tuple[int, ...] = ()
    has_hidden: bool = False
    plain_method: str = "autoregressive"


@dataclass(slots=True)
class Histogram:
    """How often a number of seconds was seen.

    Attributes:
        bounds: of the buckets, ascending; a bucket holds what is at most its bound and above the one before it.
        counts: per bucket, the last one without a bound; not added up.
        total: sum of all seconds.
    """

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def add(self, seconds: float, times: int = 1) -> None:
        """Count a number of seconds."""
        self.counts[bisect_left(self.bounds, seconds)] += times
        self.total += seconds * times


@dataclass(slots=True)
class Load:
    """What an engine holds and has done since it began.

    Attributes:
        running, waiting: samples being written, and asks in the queue.
        preempted: samples that had to give up their pages and were taken up again.
        pages, pages_used: of the cache; entries per page in `page_size`.
        prompt_tokens, cached_tokens: of all asks taken, and those of them found in the cache.
        written_tokens: made final.
        steps, drafts, drafted, accepted: forwards, steps of a sample that proposed anything, nodes, and those kept.
        accepted_at: by depth, drafts kept.
        finished: samples by how they ended.
        is_alive: it answers.
        seconds: "queue" (until an ask's first sample is begun), "first_token" (since the ask came), "between_tokens"
            (a step's seconds over the tokens that it wrote, once per token), "prefill" (from begin to first token),
            "decode" (from first token to end), "per_token" (that over the tokens behind the first one, of the longest
            sample) and "whole" (an ask, from its coming to its end).
        restarts: of an engine in a process of its own.
    """

    running: int = 0
    waiting: int = 0
    preempted: int = 0
    pages: int = 0
    pages_used: int = 0
    page_size: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    written_tokens: int = 0
    steps: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    accepted_at: list[int] = field(default_factory=list)
    finished: dict[str, int] = field(default_factory=dict)
    is_alive: bool = True
    seconds: dict[str, Histogram] = field(default_factory=dict)
    restarts: int = 0


class Face(ABC):
    """An engine as its callers see it, in this process or in another. Every call may come from any thread's loop.

    Attributes:
        traits: of the model.
        tokenizer: the model's; None = prompts are ids. It works on this side, without the engine.
    """

    traits: Traits
    tokenizer: Tokenizer | None

    @abstractmethod
    async def submit(self, ask: Ask) -> Ticket:
        """Check an ask and take it in.

        Raises:
            ConfigError, CapabilityError: it cannot be done; see the message and its hint.
            Busy: the queue is full.
            Gone: the engine is dead or closing.
        """

    @abstractmethod
    async def embed(self, texts: Sequence[Sequence[int]], pooling: str = "mean") -> list[list[float]]:
        """Return one vector per text (ids): its last hidden states, their mean or the "last" one, of length 1.

        Raises:
            ConfigError, CapabilityError, Busy, Gone: as `submit`.
        """

    @abstractmethod
    async def load(self) -> Load:
        """Return what it holds and has done."""

    @abstractmethod
    async def close(self, drain_s: float = 30.0) -> None:
        """Take nothing more in, give what runs this many seconds to end, cancel the rest, and free everything."""
