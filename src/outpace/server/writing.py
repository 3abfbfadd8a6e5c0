"""What routes that write texts have in common: from a body to running asks, and what every chunk and answer holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from outpace.api.result import Result
from outpace.engine.face import Ask, Face, Piece, Ticket
from outpace.server.asking import check_top, stop_strings
from outpace.server.errors import Refused
from outpace.server.gate import REQUEST_ID
from outpace.server.schemas import Extra, StreamOptions, TextBody
from outpace.server.serving import Serving
from outpace.server.stream import DONE, event, pieces
from outpace.server.telling import check_end, finish_reason, speculative_metrics, stopped_by, usage

__all__ = ["Sample", "Writing", "begin"]

_LARGEST = 1 << 62  # of a priority


@dataclass(slots=True)
class Sample:
    """What a stream knows of a sample so far."""

    tokens: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    offset: int = 0  # characters of the tokens, each spelled alone


@dataclass(slots=True)
class Writing:
    """The asks of one request.

    Attributes:
        served, request, body, engine: what it is about.
        prompts: token ids of each.
        tickets: one per prompt.
        id: of the answer.
        created: seconds since 1970.
        num_reasoning: tokens of reasoning text so far, of all samples.
    """

    served: Serving
    request: Request
    body: TextBody
    engine: Face
    prompts: list[list[int]]
    tickets: list[Ticket]
    id: str
    created: int = field(default_factory=lambda: int(time.time()))
    num_reasoning: int = 0

    @property
    def num_samples(self) -> int:
        """Samples per prompt."""
        return self.body.n or 1

    @property
    def num_prompt(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))

    @property
    def extra(self) -> Extra:
        """What the request holds under `outpace`."""
        return self.body.outpace or Extra()

    async def results(self) -> list[Result]:
        """Wait for all samples, prompt by prompt.

        Raises:
            Refused: every sample failed.
        """
        done = [one for many in await asyncio.gather(*(it.results() for it in self.tickets)) for one in many]
        check_end(done)
        return done

    async def pieces(self) -> AsyncIterator[tuple[int, int, Piece]]:
        """Yield (prompt, choice, piece) as pieces come.

        Raises:
            Refused: every sample failed.
        """
        async for prompt, piece in pieces(self.tickets):
            if piece.finish == "error" and len(self.tickets) * self.num_samples == 1:
                await self.results()
            yield prompt, prompt * self.num_samples + piece.sample, piece

    def ending(
        self, prompt: int, tokens: Sequence[int], text: Sequence[str], finish: str | None
    ) -> tuple[dict[str, Any], str]:
        """Return finish_reason and stop_reason of a sample, and the text of the stop where it is to show.

        Args:
            prompt: its prompt's number.
            tokens, text: what it wrote, the text in pieces.
            finish: why it ended, in our words; None = it goes on.
        """
        reason: str | int | None = None
        shown = ""
        if finish == "stop":
            stops = stop_strings(self.body, self.served.settings)
            keep = self.body.skip_special_tokens is False
            stop_ids = self.body.stop_token_ids or []
            whole, tokenizer = "".join(text), self.engine.tokenizer
            reason, cut = stopped_by(tokenizer, self.prompts[prompt], tokens, whole, stops, stop_ids, keep)
            shown = cut if self.body.include_stop_str_in_output else ""
        return {"finish_reason": finish_reason(finish), "stop_reason": reason}, shown

    def frame(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return an answer, or a chunk of one."""
        model = self.body.model or next(iter(self.served.engines))
        return {"id": self.id, "object": kind, "created": self.created, "model": model, "choices": choices, **more}

    def cost(self, results: Sequence[Result], num_written: int | None = None) -> dict[str, Any]:
        """Return usage, and metrics where they are asked for."""
        spent = usage(results, self.num_prompt, num_written)
        spent["completion_tokens_details"] = {"reasoning_tokens": self.num_reasoning}
        told: dict[str, Any] = {"usage": spent}
        if self.extra.metrics is not None:
            told["metrics"] = speculative_metrics(results[0], self.extra.metrics == "detailed")
        return told

    @property
    def stream_options(self) -> StreamOptions:
        """What the stream tells beside its text."""
        return self.body.stream_options or StreamOptions()

    def running_usage(self, num_written: int) -> dict[str, Any]:
        """Return the usage that a chunk holds where every chunk is to."""
        return {"usage": usage([], self.num_prompt, num_written)} if self.stream_options.continuous_usage_stats else {}

    async def last_frames(self, kind: str) -> AsyncIterator[bytes]:
        """Yield what ends a stream."""
        if self.stream_options.include_usage or self.extra.metrics is not None:
            yield event(self.frame(kind, [], **self.cost(await self.results())))
        yield DONE


async def begin(
    served: Serving,
    request: Request,
    body: TextBody,
    engine: Face,
    prompts: list[list[int]],
    asked: Sequence[dict[str, Any]],
    log_probs: int | None,
    prompt_log_probs: int | None,
    prefix: str,
) -> Writing:
    """Start a request's asks.

    Args:
        served, request, body, engine: what it is about.
        prompts: token ids of each.
        asked: the arguments of each, as `asking.arguments` returns them.
        log_probs: how many of the likeliest tokens are told per written token; None = nothing is.
        prompt_log_probs: the same per prompt token.
        prefix: of the answer's id.

    Raises:
        Refused: a value beyond a limit, or wishes that exclude each other.
    """
    extra = body.outpace or Extra()
    check_top("logprobs", log_probs)
    check_top("prompt_logprobs", prompt_log_probs)
    if body.stream_options is not None and not body.stream:
        raise Refused(400, "stream_options needs stream. Set stream to true.", param="stream_options")
    if len(prompts) * (body.n or 1) > served.settings.max_prompts:
        message = f"{len(prompts)} prompts of {body.n or 1} samples each; at most {served.settings.max_prompts} in all."
        raise Refused(400, message, param="prompt", code="invalid_value")
    if extra.metrics is not None and len(prompts) * (body.n or 1) > 1:
        raise Refused(400, "outpace.metrics tells of one sample. Ask for one.", param="outpace.metrics")
    if abs(body.priority or 0) > _LARGEST:
        raise Refused(400, "priority is no number of 62 bits.", param="priority")
    if body.stream and body.prompt_logprobs is not None:
        raise Refused(400, "prompt_logprobs is not streamed. Leave out stream.", param="prompt_logprobs")
    if body.request_id is not None:
        if not REQUEST_ID.fullmatch(body.request_id):
            raise Refused(400, "request_id holds other signs than letters, digits and _.:/=+-.", param="request_id")
        request.state.request_id = body.request_id
    name = request.state.request_id
    told = {} if log_probs is None else {"record": ("log_probs",), "top_log_probs": log_probs}
    asks = [
        Ask(
            prompt=ids,
            arguments={**arguments, **told},
            id=f"{name}-{index}" if len(prompts) > 1 else name,
            priority=body.priority or 0,
            prompt_log_probs=prompt_log_probs,
            is_traced=extra.trace,
            salt=body.cache_salt or "",
        )
        for index, (ids, arguments) in enumerate(zip(prompts, asked, strict=True))
    ]
    tickets = await served.submit_all(engine, asks, request)
    return Writing(served, request, body, engine, prompts, tickets, f"{prefix}-{name}")
