"""/v1/messages in Anthropic's form, and /v1/messages/count_tokens: the same asks as a chat's, told block by block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from pydantic import Field
from pydantic_core import from_json

from outpace.api.result import Result
from outpace.server.asking import chat_arguments, check_fields, encode_chat
from outpace.server.chat import Heard, begin_chat, hear
from outpace.server.errors import Refused, error_body
from outpace.server.gate import warn
from outpace.server.route import new_router
from outpace.server.schemas import Body, ChatBody, Extra
from outpace.server.serving import Served, json_response
from outpace.server.stream import Events, event
from outpace.server.tools_blocks import Block, Blocks, Change
from outpace.server.tools_choice import Reading, tools_told
from outpace.server.tools_history import chat_body, from_blocks
from outpace.server.writing import Writing

__all__ = ["CountBody", "MessagesBody", "router"]

router = new_router()
_PREFIX = "msg"
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_ENDS = {"length": "max_tokens", "tool_calls": "tool_use"}
_UNSIGNED = "unsigned"  # clients drop thinking without a signature


class CountBody(Body):
    """Body of /v1/messages/count_tokens."""

    model: str | None = None
    messages: list[dict[str, Any]]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # They change nothing here: what a cache can hold, it holds.
    cache_control: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    # Not served.
    container: Any = None
    mcp_servers: list[Any] | None = None
    context_management: Any = None


class MessagesBody(CountBody):
    """Body of /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    stream: bool | None = None
    speed: Literal["standard"] | None = None
    seed: int | None = None
    outpace: Extra | None = None


@router.post("/v1/messages")
async def messages(body: MessagesBody, served: Served, request: Request) -> Response:
    """Answer a conversation in Anthropic's form."""
    chat = _as_chat(body, request)
    names = ("max_tokens", "temperature", "top_p", "top_k", "seed", "outpace", "stream")
    chat = chat.model_copy(update={name: getattr(body, name) for name in names} | {"stop": body.stop_sequences})
    work, reading = await begin_chat(chat, served, request, _PREFIX)
    if body.stream:
        return Events(_frames(work, reading), served, request, lambda refused: _tell(refused, request))
    answer = await served.finish(request, _answer(work, reading))
    return json_response(answer, headers={"request-id": request.state.request_id})


@router.post("/v1/messages/count_tokens")
async def count_tokens(body: CountBody, served: Served, request: Request) -> Response:
    """Count the tokens of a conversation, its system prompt and its tools."""
    chat, engine = _as_chat(body, request), served.engine(body.model)
    told = tools_told(chat.tools, chat.tool_choice)
    _, ids = await encode_chat(engine, chat.messages, chat_arguments(chat, engine, request.scope, told))
    return json_response({"input_tokens": len(ids)})


def _as_chat(body: CountBody, request: Request) -> ChatBody:
    """Return the conversation as the other routes have it.

    Raises:
        Refused: something that is not served.
    """
    check_fields(body, request.scope, "container", "mcp_servers", "context_management")
    told = from_blocks(body.messages, body.system)
    choice, is_parallel = _choice(body.tool_choice)
    config = body.output_config or {}
    is_begun = bool(told) and told[-1]["role"] == "assistant" and "tool_calls" not in told[-1]
    asked = {
        "model": body.model,
        "messages": told,
        "tools": [_tool(tool) for tool in body.tools or ()] or None,
        "tool_choice": choice,
        "parallel_tool_calls": is_parallel,
        "chat_template_kwargs": {**_thinking(body.thinking, request), **(body.chat_template_kwargs or {})},
        "reasoning_effort": config.get("effort"),
        "response_format": config.get("format"),
        "continue_final_message": is_begun or None,
    }
    return chat_body(asked)


def _thinking(given: Mapping[str, Any] | None, request: Request) -> dict[str, Any]:
    kind = (given or {}).get("type")
    if given is None or kind is None:
        return {}
    if "budget_tokens" in given:
        warn(request.scope, "thinking.budget_tokens is not held; max_tokens bounds thinking and answer together.")
    return {"enable_thinking": kind != "disabled"}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    kind = tool.get("type") or "custom"
    if kind != "custom":
        message = f"Tools of type {str(kind)[:50]!r} are not served. Give tools with an input_schema."
        raise Refused(400, message, param="tools", code="unsupported_field")
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _choice(given: Mapping[str, Any] | None) -> tuple[Any, bool | None]:
    """Return OpenAI's tool_choice and parallel_tool_calls."""
    if given is None:
        return None, None
    is_parallel = False if given.get("disable_parallel_tool_use") else None
    if given.get("type") == "tool":
        return {"type": "function", "function": {"name": given.get("name")}}, is_parallel
    if str(given.get("type")) not in _CHOICES:
        raise Refused(400, "tool_choice.type is none of auto, any, tool, none.", param="tool_choice")
    return _CHOICES[given["type"]], is_parallel


# A whole answer


async def _answer(work: Writing, reading: Reading) -> dict[str, Any]:
    heard, blocks = Heard(reading.parser()), Blocks(has_broken=False)
    async for _, _, piece in work.pieces():
        for _ in blocks.feed(hear(work, heard, piece)):
            pass
    (result,) = await work.results()
    told = _message(work, [_block(block) for block in blocks.all])
    return told | _end(heard) | {"usage": _usage(work, result)}


def _message(work: Writing, content: list[dict[str, Any]]) -> dict[str, Any]:
    model = work.body.model or next(iter(work.served.engines))
    head = {"id": work.id, "type": "message", "role": "assistant", "model": model, "content": content}
    return {**head, "stop_reason": None, "stop_sequence": None}


def _block(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": _UNSIGNED}
    if block.kind == "text":
        return {"type": "text", "text": block.text, "citations": None}
    try:  # arguments may end early
        given = from_json(block.text or "{}", allow_partial=True)
    except ValueError:
        given = {}
    return {"type": "tool_use", "id": block.id, "name": block.name, "input": given}


def _end(heard: Heard) -> dict[str, Any]:
    end = heard.end or {}
    reason, stop = end.get("finish_reason"), end.get("stop_reason")
    if reason == "stop" and isinstance(stop, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    return {"stop_reason": _ENDS.get(str(reason), "end_turn"), "stop_sequence": None}


def _usage(work: Writing, result: Result) -> dict[str, Any]:
    cached = result.cached_tokens
    return {
        "input_tokens": work.num_prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": len(result.tokens),
        "output_tokens_details": {"thinking_tokens": work.num_reasoning},
        "outpace": work.cost([result])["usage"]["outpace"],
    }


# A stream


async def _frames(work: Writing, reading: Reading) -> AsyncIterator[bytes]:
    heard, blocks = Heard(reading.parser()), Blocks(has_broken=False)
    start = {"input_tokens": work.num_prompt, "output_tokens": 0}
    yield _event("message_start", message={**_message(work, []), "usage": start})
    async for _, _, piece in work.pieces():
        for change in blocks.feed(hear(work, heard, piece)):
            for frame in _change(change):
                yield frame
    for change in blocks.close():
        for frame in _change(change):
            yield frame
    (result,) = await work.results()
    yield _event("message_delta", delta=_end(heard), usage=_usage(work, result))
    yield _event("message_stop")


def _change(change: Change) -> list[bytes]:
    block, index = change.block, change.block.index
    if change.what == "open":
        empty = Block(index, block.kind, "", block.id, block.name)
        told = _block(empty) | ({"signature": ""} if block.kind == "reasoning" else {})
        return [_event("content_block_start", index=index, content_block=told)]
    if change.what == "more":
        delta = {
            "reasoning": {"type": "thinking_delta", "thinking": change.piece},
            "text": {"type": "text_delta", "text": change.piece},
            "call": {"type": "input_json_delta", "partial_json": change.piece},
        }[block.kind]
        return [_event("content_block_delta", index=index, delta=delta)]
    signature = {"type": "signature_delta", "signature": _UNSIGNED}
    signed = [_event("content_block_delta", index=index, delta=signature)] if block.kind == "reasoning" else []
    return [*signed, _event("content_block_stop", index=index)]


def _event(name: str, **data: Any) -> bytes:
    return event({"type": name, **data}, name)


def _tell(refused: Refused, request: Request) -> bytes:
    told = error_body(refused, "/v1/messages", request.state.request_id)
    return event(told, "error")
