"""/v1/chat/completions: conversations, with tools and reasoning text told apart token by token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Request, Response

from outpace.api.result import Result
from outpace.engine.face import Piece, Token
from outpace.server.asking import arguments, chat_arguments, check_fields, encode_chat
from outpace.server.errors import Refused
from outpace.server.gate import warn
from outpace.server.route import new_router
from outpace.server.schemas import ChatBody
from outpace.server.serving import Served, Serving, json_response
from outpace.server.stream import Events, event
from outpace.server.structure import CONSTRAINTS
from outpace.server.telling import Top, chat_log_probs, prompt_log_probs, traced, traced_piece
from outpace.server.tools import MessageParser
from outpace.server.tools_choice import Reading, read_tools, tools_told
from outpace.server.tools_message import Delta, Message
from outpace.server.writing import Writing, begin

__all__ = ["Heard", "begin_chat", "hear", "router"]

router = new_router()
_KIND, _CHUNK = "chat.completion", "chat.completion.chunk"


@dataclass(slots=True)
class Heard:
    """A sample as it is read.

    Attributes:
        parser: tells its message.
        tokens, text, steps: as they came.
        end: finish_reason and stop_reason; None while it goes on.
    """

    parser: MessageParser
    tokens: list[Token] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    steps: list[Any] = field(default_factory=list)
    end: dict[str, Any] | None = None


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatBody, served: Served, request: Request) -> Response:
    """Answer a conversation."""
    check_fields(body, request.scope, "echo")
    work, reading = await begin_chat(body, served, request, "chatcmpl")
    if body.stream:
        return Events(_frames(work, reading), served, request)
    return json_response(await served.finish(request, _answer(work, reading)))


async def begin_chat(body: ChatBody, served: Serving, request: Request, prefix: str) -> tuple[Writing, Reading]:
    """Start the answer to a conversation; return what writes it and how it is read.

    Args:
        body: the conversation, and what is wanted; other routes bring theirs into this form.
        served, request: what it is about.
        prefix: of the answer's id.

    Raises:
        Refused, OutpaceError: see the message.
    """
    engine = served.engine(body.model)
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if wanted == 0:
        raise Refused(400, "max_tokens is 0. Ask for 1 or more.", param="max_tokens", code="invalid_value")
    if body.top_logprobs is not None and not body.logprobs:
        raise Refused(400, "top_logprobs needs logprobs. Set logprobs to true.", param="top_logprobs")
    told = tools_told(body.tools, body.tool_choice)
    text, ids = await encode_chat(engine, body.messages, chat_arguments(body, engine, request.scope, told))
    asked = arguments(body, engine, served.settings, request.scope, len(ids), wanted)
    answer = {name: asked.pop(name) for name in CONSTRAINTS if name in asked}
    assert engine.tokenizer is not None  # or there had been no ids
    reading = await asyncio.to_thread(
        read_tools,
        engine.tokenizer,
        body.tools,
        body.tool_choice,
        prompt=text,
        is_parallel=body.parallel_tool_calls is not False,
        format=served.settings.tool_format,
        reasoning=served.settings.reasoning_format,
        answer=answer or None,
    )
    for note in reading.notes:
        warn(request.scope, note)
    if body.skip_special_tokens is False:
        reading = replace(reading, hidden=frozenset())
    shown = (body.top_logprobs or 0) if body.logprobs else None
    made = [{**asked, **reading.arguments}]
    work = await begin(served, request, body, engine, [ids], made, shown, body.prompt_logprobs, prefix)
    return work, reading


def hear(work: Writing, sample: Heard, piece: Piece) -> list[Delta]:
    """Let a sample's parser read a piece token by token; return what became known."""
    deltas: list[Delta] = []
    parser = sample.parser
    for token in piece.tokens:
        was_reasoning = parser.is_reasoning
        deltas += parser.push(token.text)
        work.num_reasoning += was_reasoning or parser.is_reasoning
    sample.tokens += piece.tokens
    sample.text += [*(token.text for token in piece.tokens), piece.rest]
    sample.steps.append(piece.step)
    deltas += parser.push(piece.rest)
    if piece.finish is None and parser.is_done and work.num_samples == 1:
        work.tickets[0].cancel()  # the one call that was wanted is there
    if piece.finish is not None:
        ids = [token.id for token in sample.tokens]
        sample.end, stop = work.ending(0, ids, sample.text, piece.finish)
        deltas += parser.push(stop) + parser.finish()
        if parser.message.calls and piece.finish in ("eos", "stop", "cancelled"):
            sample.end["finish_reason"] = "tool_calls"
    return deltas


# A whole answer


async def _answer(work: Writing, reading: Reading) -> dict[str, Any]:
    samples = [Heard(reading.parser()) for _ in range(work.num_samples)]
    async for _, index, piece in work.pieces():
        hear(work, samples[index], piece)
    results = await work.results()
    choices = [_choice(work, *both) for both in zip(samples, results, strict=True)]
    told = work.frame(_KIND, choices, **work.cost(results))
    body = _body(work)
    if body.prompt_logprobs is not None:
        told["prompt_logprobs"] = prompt_log_probs(work.engine.tokenizer, results[0])
    if body.return_token_ids:
        told["prompt_token_ids"] = work.prompts[0]
    return told


def _choice(work: Writing, sample: Heard, result: Result) -> dict[str, Any]:
    body = _body(work)
    told: dict[str, Any] = {"index": result.sample, "message": _message(sample.parser.message), "logprobs": None}
    told |= sample.end or {"finish_reason": "stop", "stop_reason": None}
    if body.logprobs:
        told["logprobs"] = _log_probs(work, result.tokens, result.log_probs, result.top_log_probs)
    if body.return_token_ids:
        told["token_ids"] = result.tokens
    if work.extra.trace:
        told["outpace"] = {"tokens": traced(sample.tokens), "steps": sample.steps}
    return told


def _message(message: Message) -> dict[str, Any]:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.calls
    ]
    told: dict[str, Any] = {"role": "assistant", "content": message.content, "refusal": None}
    if message.reasoning:  # clients read it under one name or the other
        told |= {"reasoning": message.reasoning, "reasoning_content": message.reasoning}
    if calls:
        told |= {"content": message.content or None, "tool_calls": calls}
    return told


def _log_probs(work: Writing, tokens: Sequence[int], values: Sequence[float | None], tops: Sequence[Top]) -> Any:
    tops = tops or [()] * len(values)
    return chat_log_probs(work.engine.tokenizer, tokens, values, tops, bool(_body(work).return_tokens_as_token_ids))


def _body(work: Writing) -> ChatBody:
    assert isinstance(work.body, ChatBody)
    return work.body


# A stream


async def _frames(work: Writing, reading: Reading) -> AsyncIterator[bytes]:
    body = _body(work)
    samples = [Heard(reading.parser()) for _ in range(work.num_samples)]
    more: dict[str, Any] = {"prompt_token_ids": work.prompts[0]} if body.return_token_ids else {}
    for index in range(work.num_samples):
        opening = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
        yield event(work.frame(_CHUNK, [{**opening, "finish_reason": None}], **work.running_usage(0), **more))
    written = 0
    async for _, index, piece in work.pieces():
        sample, written = samples[index], written + len(piece.tokens)
        deltas = [_delta(delta) for delta in hear(work, sample, piece)]
        beside = _beside(work, piece)
        if beside and not deltas:
            deltas = [{}]
        for number, delta in enumerate(deltas):
            told = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            told |= beside if number == 0 else {}
            yield event(work.frame(_CHUNK, [told], **work.running_usage(written)))
        if sample.end is not None:
            told = {"index": index, "delta": {}, "logprobs": None, **sample.end}
            yield event(work.frame(_CHUNK, [told], **work.running_usage(written)))
    async for frame in work.last_frames(_CHUNK):
        yield frame


def _beside(work: Writing, piece: Piece) -> dict[str, Any]:
    """Return what a chunk tells of a step's tokens, beside their text."""
    body, tokens, told = _body(work), piece.tokens, dict[str, Any]()
    if body.logprobs and tokens:
        values, tops = [it.log_prob for it in tokens], [it.top for it in tokens]
        told["logprobs"] = _log_probs(work, [it.id for it in tokens], values, tops)
    if body.return_token_ids and tokens:
        told["token_ids"] = [it.id for it in tokens]
    if work.extra.trace:
        told["outpace"] = traced_piece(work.engine.tokenizer, piece)
    return told


def _delta(delta: Delta) -> dict[str, Any]:
    if delta.call is None:
        said = {"reasoning": delta.reasoning, "reasoning_content": delta.reasoning} if delta.reasoning else {}
        return {**said, **({"content": delta.content} if delta.content else {})}
    function = {"arguments": delta.arguments}
    if delta.name:
        return {
            "tool_calls": [
                {
                    "index": delta.call,
                    "id": delta.id,
                    "type": "function",
                    "function": {"name": delta.name, **function},
                }
            ]
        }
    return {"tool_calls": [{"index": delta.call, "function": function}]}
