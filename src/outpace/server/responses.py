"""/v1/responses, OpenAI's newer form of a chat: items in, items out, and a stream of named events."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import orjson
from fastapi import Request, Response
from pydantic import Field

from outpace.server.asking import check_fields
from outpace.server.chat import Heard, begin_chat, hear
from outpace.server.errors import Refused
from outpace.server.gate import warn
from outpace.server.responses_told import Telling
from outpace.server.route import new_router
from outpace.server.schemas import Body, ChatBody, Extra
from outpace.server.serving import Served, json_response
from outpace.server.stream import Events
from outpace.server.tools_blocks import Blocks
from outpace.server.tools_choice import Reading
from outpace.server.tools_history import chat_body, from_items
from outpace.server.writing import Writing

__all__ = ["ResponsesBody", "router"]

router = new_router()
_UNSERVED = ("background", "conversation", "prompt", "moderation", "context_management")
_MOST_KEPT, _MOST_KEPT_BYTES = 1_000, 64 << 20  # of responses that can be gone on with
_INCLUDED = ("reasoning.encrypted_content",)  # what asks for nothing here


class ResponsesBody(Body):
    """Body of /v1/responses."""

    model: str | None = None
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = None  # of tools that a server calls by itself; there are none
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None  # obfuscation; there is none
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    include: list[str] | None = None
    top_logprobs: Literal[0] | None = None
    truncation: Literal["disabled"] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    # Beyond OpenAI's.
    seed: int | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    priority: int | None = None
    outpace: Extra | None = None
    # Not served.
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    moderation: Any = None
    context_management: Any = None


_PASSED = (
    "model",
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "stream",
    "user",
    "seed",
    "top_k",
    "min_p",
    "stop",
    "ignore_eos",
    "chat_template_kwargs",
    "priority",
)


@dataclass(slots=True)
class Kept:
    """A response that was stored: what it says, and the conversation up to its end."""

    told: dict[str, Any]
    messages: list[dict[str, Any]]
    size: int


@dataclass(slots=True)
class Store:
    """Stored responses, in memory and not for ever: the oldest ones give way."""

    kept: OrderedDict[str, Kept] = field(default_factory=OrderedDict)
    size: int = 0

    def add(self, told: dict[str, Any], messages: list[dict[str, Any]]) -> None:
        """Keep a response."""
        size = len(orjson.dumps([told, messages]))
        self.kept[told["id"]] = Kept(told, messages, size)
        self.size += size
        while self.kept and (len(self.kept) > _MOST_KEPT or self.size > _MOST_KEPT_BYTES):
            self.drop(next(iter(self.kept)))

    def get(self, name: str, param: str) -> Kept:
        """Return a response.

        Raises:
            Refused: 404, it is not kept.
        """
        if name not in self.kept:
            message = f"There is no response {name[:100]!r} here (any more). Send the conversation whole."
            raise Refused(404, message, param=param, code="response_not_found")
        return self.kept[name]

    def drop(self, name: str) -> None:
        """Forget a response."""
        self.size -= self.kept.pop(name).size


def _store(request: Request) -> Store:
    state = request.app.state
    if not hasattr(state, "responses"):
        state.responses = Store()
    found: Store = state.responses
    return found


@router.post("/v1/responses")
async def responses(body: ResponsesBody, served: Served, request: Request) -> Response:
    """Answer a conversation, item by item."""
    store = _store(request)
    last = body.previous_response_id
    before = [] if last is None else store.get(last, "previous_response_id").messages
    said = [*before, *from_items(body.input)]
    chat = _as_chat(body, said, request)
    work, reading = await begin_chat(chat, served, request, "resp")
    work.id = f"resp_{uuid.uuid4().hex}"  # it opens the conversation to whoever has it
    telling = Telling(body, work)
    if body.store is not False:
        telling.keep = lambda told: store.add(told, [*said, *from_items(told["output"])])
    if body.stream:
        return Events(_frames(work, reading, telling), served, request, telling.failed)
    return json_response(await served.finish(request, _answer(work, reading, telling)))


@router.get("/v1/responses/{name}")
async def stored(name: str, request: Request) -> Response:
    """Return a stored response."""
    return json_response(_store(request).get(name, "response_id").told)


@router.delete("/v1/responses/{name}")
async def forget(name: str, request: Request) -> Response:
    """Forget a stored response."""
    _store(request).get(name, "response_id")
    _store(request).drop(name)
    return json_response({"id": name, "object": "response", "deleted": True})


# What is asked


def _as_chat(body: ResponsesBody, said: Sequence[Mapping[str, Any]], request: Request) -> ChatBody:
    """Return the request as a chat's.

    Raises:
        Refused: something that is not served.
    """
    check_fields(body, request.scope, *_UNSERVED)
    for name in body.include or ():
        if name not in _INCLUDED:
            raise _unserved("include", f"include of {name[:100]!r} is not served. Leave it out.")
    text, reasoning = body.text or {}, body.reasoning or {}
    if text.get("verbosity") not in (None, "medium"):
        warn(request.scope, "text.verbosity was ignored.")
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    asked = {name: getattr(body, name) for name in _PASSED}
    asked |= {
        "messages": [*system, *said],
        "max_completion_tokens": body.max_output_tokens,
        "tools": [_tool(tool) for tool in body.tools or ()] or None,
        "tool_choice": _choice(body.tool_choice),
        "response_format": text.get("format"),
        "reasoning_effort": reasoning.get("effort"),
    }
    return chat_body(asked).model_copy(update={"outpace": body.outpace})


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        kind = str(tool.get("type"))[:50]
        raise _unserved("tools", f"Tools of type {kind!r} are not served. Give functions.")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}


def _choice(choice: Any) -> Any:
    if not isinstance(choice, Mapping):
        return choice
    if choice.get("type") != "function":
        raise _unserved("tool_choice", f"tool_choice of type {str(choice.get('type'))[:50]!r} is not served.")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _unserved(where: str, message: str) -> Refused:
    return Refused(400, message, param=where, code="unsupported_field")


# What is told


async def _answer(work: Writing, reading: Reading, telling: Telling) -> dict[str, Any]:
    heard, blocks = Heard(reading.parser()), Blocks()
    async for _, _, piece in work.pieces():
        telling.take(blocks.feed(hear(work, heard, piece)))
    telling.reason = (heard.end or {}).get("finish_reason")
    telling.take(blocks.close())
    (result,) = await work.results()
    return telling.ended(result)


# A stream


async def _frames(work: Writing, reading: Reading, telling: Telling) -> AsyncIterator[bytes]:
    heard, blocks = Heard(reading.parser()), Blocks()
    for name in ("response.created", "response.in_progress"):
        yield telling.event(name, response=telling.response("in_progress"))
    async for _, _, piece in work.pieces():
        for change in blocks.feed(hear(work, heard, piece)):
            for frame in telling.frames(change):
                yield frame
    telling.reason = (heard.end or {}).get("finish_reason")
    for change in blocks.close():
        for frame in telling.frames(change):
            yield frame
    (result,) = await work.results()
    told = telling.ended(result)
    name = "response.incomplete" if told["status"] == "incomplete" else "response.completed"
    yield telling.event(name, response=told)
