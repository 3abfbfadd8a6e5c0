"""/v1/completions: plain prompts, as text or ids, one or many; echoed, scored, or with a gap to fill."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request, Response

from outpace.api.infill import lay_pieces
from outpace.api.result import Result
from outpace.engine.face import Face, Piece, Token
from outpace.server.asking import arguments, check_fields, check_length, encode
from outpace.server.errors import Refused
from outpace.server.route import new_router
from outpace.server.schemas import CompletionBody
from outpace.server.serving import Served, Serving, json_response
from outpace.server.stream import Events, event
from outpace.server.telling import (
    Top,
    completion_log_probs,
    finish_reason,
    prompt_log_probs,
    spelled,
    traced,
    traced_piece,
)
from outpace.server.writing import Sample, Writing, begin

__all__ = ["router"]

router = new_router()
_KIND = "text_completion"
_DEFAULT_TOKENS = 16  # as in OpenAI's interface


@router.post("/v1/completions")
async def completions(body: CompletionBody, served: Served, request: Request) -> Response:
    """Go on with prompts."""
    engine = served.engine(body.model)
    check_fields(body, request.scope)
    _check(body)
    prompts = await _prompts(body, engine, served)
    work = await _begin(body, engine, served, request, prompts)
    if body.stream:
        return Events(_frames(work), served, request)
    return json_response(await served.finish(request, _answer(work)))


def _check(body: CompletionBody) -> None:
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise Refused(400, "best_of is not served. Ask for n samples, and choose.", param="best_of")
    if body.max_tokens == 0 and (body.stream or not (body.echo or body.prompt_logprobs is not None)):
        raise Refused(400, "max_tokens is 0. Ask for 1 or more; 0 goes with echo alone.", param="max_tokens")
    if body.echo and body.stream and body.logprobs is not None:
        raise Refused(400, "echo with logprobs is not streamed. Leave out stream.", param="echo")
    if body.suffix is not None and (body.echo or body.logprobs is not None or body.response_format):
        raise Refused(400, "suffix goes without echo, logprobs and response_format.", param="suffix")
    is_traced = body.outpace is not None and body.outpace.trace
    if body.suffix is not None and body.stream and (body.return_token_ids or is_traced):
        raise Refused(400, "A stream that fills a gap tells of no tokens. Leave out stream.", param="stream")


async def _prompts(body: CompletionBody, engine: Face, served: Serving) -> list[list[int]]:
    given: Any = body.prompt
    many: list[Any] = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
    if not many:
        raise Refused(400, "The prompt is empty. Give at least one character.", param="prompt")
    if len(many) > served.settings.max_prompts:
        raise Refused(
            400, f"{len(many)} prompts; at most {served.settings.max_prompts} are taken at a time.", param="prompt"
        )
    for one in many:
        if isinstance(one, str):
            check_length(engine, one, "prompt")
    is_special = body.add_special_tokens is not False
    return [await encode(engine, one, is_special) if isinstance(one, str) else list(one) for one in many]


async def _begin(
    body: CompletionBody, engine: Face, served: Serving, request: Request, prompts: list[list[int]]
) -> Writing:
    """Start the asks; on a masked model the suffix is what its canvas ends with."""
    wanted = _DEFAULT_TOKENS if body.max_tokens is None else max(1, body.max_tokens)
    asked = [arguments(body, engine, served.settings, request.scope, len(ids), wanted) for ids in prompts]
    if body.suffix is not None:
        if not engine.traits.is_canvas:
            message = "suffix needs a masked model, which fills gaps, such as stories-mask. Leave it out."
            raise Refused(400, message, param="suffix", code="unsupported_field")
        behind = await encode(engine, body.suffix, False)
        bos = None if engine.tokenizer is None else engine.tokenizer.bos_id
        start = engine.traits.end_tokens[:1] if bos is None else [bos]
        for index, ids in enumerate(prompts):
            prompts[index], canvas = lay_pieces([ids, wanted, behind], lambda *_: [], start)
            asked[index] |= {"canvas": canvas, "max_tokens": len(canvas)}
    scored = body.prompt_logprobs if body.prompt_logprobs is not None else body.logprobs if body.echo else None
    return await begin(served, request, body, engine, prompts, asked, body.logprobs, scored, "cmpl")


def _body(work: Writing) -> CompletionBody:
    assert isinstance(work.body, CompletionBody)
    return work.body


def _echoed(work: Writing, prompt: int) -> str:
    """Return the text of a prompt: what was sent, or what its ids say."""
    given: Any = _body(work).prompt
    if isinstance(given, str):
        return given
    if given and isinstance(given[prompt], str):
        return str(given[prompt])
    tokenizer, ids = work.engine.tokenizer, work.prompts[prompt]
    return "" if tokenizer is None else tokenizer.decode(ids, skip_special=False)


# A whole answer


async def _answer(work: Writing) -> dict[str, Any]:
    traces: dict[int, list[Token]] = {}
    steps: dict[int, list[Any]] = {}
    if work.extra.trace:
        async for _, choice, piece in work.pieces():
            traces.setdefault(choice, []).extend(piece.tokens)
            steps.setdefault(choice, []).append(piece.step)
    results = await work.results()
    choices = [_choice(work, index, result) for index, result in enumerate(results)]
    for told in choices:
        if work.extra.trace:
            index = told["index"]
            told["outpace"] = {"tokens": traced(traces.get(index, [])), "steps": steps.get(index, [])}
    written = sum(_num_written(work, result) for result in results)
    return work.frame(_KIND, choices, **work.cost(results, written))


def _num_written(work: Writing, result: Result) -> int:
    body = _body(work)
    if body.max_tokens == 0:
        return 0
    if body.suffix is not None:
        return min(len(result.tokens), body.max_tokens or _DEFAULT_TOKENS)
    return len(result.tokens)


def _choice(work: Writing, index: int, result: Result) -> dict[str, Any]:
    body, prompt = _body(work), index // work.num_samples
    tokens, text = result.tokens, result.text
    end, stop = work.ending(prompt, tokens, [text], result.finish_reason)
    if body.max_tokens == 0:
        tokens, text, stop, end = [], "", "", {"finish_reason": "length", "stop_reason": None}
    elif body.suffix is not None:
        tokens, text = tokens[: _num_written(work, result)], "".join(result.filled)
    before = _echoed(work, prompt) if body.echo else ""
    told: dict[str, Any] = {"index": index, "text": before + text + stop, "logprobs": None, **end}
    if body.logprobs is not None:
        told["logprobs"] = _log_probs(work, result, tokens)
    if body.prompt_logprobs is not None:
        told["prompt_logprobs"] = prompt_log_probs(work.engine.tokenizer, result)
    if body.return_token_ids:
        told |= {"token_ids": tokens, "prompt_token_ids": work.prompts[prompt]}
    return told


def _log_probs(work: Writing, result: Result, tokens: list[int]) -> dict[str, Any]:
    """Return the log-probabilities of what was written, behind those of the prompt where that is echoed."""
    body = _body(work)
    values: list[float | None] = list(result.log_probs[: len(tokens)])
    tops: list[Top] = list(result.top_log_probs[: len(tokens)]) or [()] * len(values)
    if body.echo:
        shown = body.logprobs or 0
        scored = [(value, top[:shown]) for value, top in result.prompt_log_probs]
        tokens = [*result.prompt_tokens, *tokens]
        values, tops = [*(it[0] for it in scored), *values], [*(it[1] for it in scored), *tops]
    as_id = bool(body.return_tokens_as_token_ids)
    return completion_log_probs(work.engine.tokenizer, tokens, values, tops, as_id=as_id)


# A stream


async def _frames(work: Writing) -> AsyncIterator[bytes]:
    body = _body(work)
    samples = [Sample() for _ in range(len(work.prompts) * work.num_samples)]
    if body.suffix is not None:
        async for frame in _filled(work):
            yield frame
        return
    for index in range(len(samples) if body.echo else 0):
        text = _echoed(work, index // work.num_samples)
        yield event(_chunk(work, {"index": index, "text": text, "logprobs": None, "finish_reason": None}, 0))
    written = 0
    async for prompt, index, piece in work.pieces():
        written += len(piece.tokens)
        told = _piece(work, prompt, index, piece, samples[index])
        if told is not None:
            yield event(_chunk(work, told, written))
    async for frame in work.last_frames(_KIND):
        yield frame


def _chunk(work: Writing, choice: dict[str, Any], written: int) -> dict[str, Any]:
    return work.frame(_KIND, [choice], **work.running_usage(written))


def _piece(work: Writing, prompt: int, index: int, piece: Piece, sample: Sample) -> dict[str, Any] | None:
    """Return a chunk's choice; None where the step made nothing to tell."""
    body, is_first = _body(work), not sample.tokens
    text = "".join(token.text for token in piece.tokens) + piece.rest
    sample.tokens += [token.id for token in piece.tokens]
    sample.text.append(text)
    end, stop = work.ending(prompt, sample.tokens, sample.text, piece.finish)
    told: dict[str, Any] = {"index": index, "text": text + stop, "logprobs": None, **end}
    if body.logprobs is not None and piece.tokens:
        told["logprobs"] = completion_log_probs(
            work.engine.tokenizer,
            [token.id for token in piece.tokens],
            [token.log_prob for token in piece.tokens],
            [token.top for token in piece.tokens],
            sample.offset,
            bool(body.return_tokens_as_token_ids),
        )
        sample.offset += sum(len(spelled(work.engine.tokenizer, token.id)[0]) for token in piece.tokens)
    if body.return_token_ids:
        told["token_ids"] = [token.id for token in piece.tokens]
        if is_first:
            told["prompt_token_ids"] = work.prompts[prompt]
    if work.extra.trace:
        told["outpace"] = traced_piece(work.engine.tokenizer, piece)
    is_silent = not told["text"] and piece.finish is None and told["logprobs"] is None and not body.return_token_ids
    return None if is_silent and not work.extra.trace else told


async def _filled(work: Writing) -> AsyncIterator[bytes]:
    """Yield a gap's text in one piece: what a canvas holds is not written from left to right."""
    results = await work.results()
    for index, result in enumerate(results):
        told = {"index": index, "text": "".join(result.filled), "logprobs": None}
        told["finish_reason"] = finish_reason(result.finish_reason)
        yield event(_chunk(work, told, sum(_num_written(work, it) for it in results[: index + 1])))
    async for frame in work.last_frames(_KIND):
        yield frame
