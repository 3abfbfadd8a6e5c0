"""What /v1/responses tells: the response object, its items, and the events of its stream in their order."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from outpace.api.result import Result
from outpace.server.errors import Refused
from outpace.server.stream import event
from outpace.server.tools_blocks import Block, Change
from outpace.server.writing import Writing

if TYPE_CHECKING:
    from outpace.server.responses import ResponsesBody

__all__ = ["Telling"]

_DELTAS = {
    "reasoning": "response.reasoning_text",
    "text": "response.output_text",
    "call": "response.function_call_arguments",
}


class Telling:
    """A response as it grows.

    Args:
        body: the request.
        work: what writes it.

    Attributes:
        items: its output so far.
        reason: why the text ended, once it has.
        keep: called with the whole response at its end.
    """

    def __init__(self, body: ResponsesBody, work: Writing) -> None:
        self._body, self._work, self._number = body, work, 0
        self.items: list[dict[str, Any]] = []
        self.reason: str | None = None
        self.keep: Callable[[dict[str, Any]], None] | None = None

    def response(self, status: str, **more: Any) -> dict[str, Any]:
        """Return the response object."""
        body, work = self._body, self._work
        told: dict[str, Any] = {
            "id": work.id,
            "object": "response",
            "created_at": work.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": body.model or next(iter(work.served.engines)),
            "output": self.items,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": None, "summary": None, **(body.reasoning or {})},
            "store": body.store is not False,
            "temperature": body.temperature,
            "text": {"format": {"type": "text"}, **(body.text or {})},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
            "metadata": body.metadata or {},
        }
        return told | more

    def event(self, kind: str, **data: Any) -> bytes:
        """Return the next event."""
        told = event({"type": kind, "sequence_number": self._number, **data}, kind)
        self._number += 1
        return told

    def ended(self, result: Result) -> dict[str, Any]:
        """Return the whole response, and keep it where that is wanted."""
        details = {"reason": "max_output_tokens"} if self.reason == "length" else None
        told = self.response(self._status, incomplete_details=details, usage=_usage(self._work, result))
        if self.keep is not None:
            self.keep(told)
        return told

    @property
    def _status(self) -> str:
        return "incomplete" if self.reason in ("length", "abort") else "completed"

    def failed(self, refused: Refused) -> bytes:
        """Return the last event of a response that failed."""
        code = "rate_limit_exceeded" if refused.status_code == 429 else "server_error"
        error = {"code": code, "message": refused.message}
        return self.event("response.failed", response=self.response("failed", error=error))

    def open(self, block: Block) -> dict[str, Any]:
        """Begin an item and return it."""
        name = uuid.uuid4().hex
        if block.kind == "reasoning":
            item: dict[str, Any] = {"id": f"rs_{name}", "type": "reasoning", "summary": [], "content": []}
        elif block.kind == "text":
            item = {"id": f"msg_{name}", "type": "message", "role": "assistant", "content": []}
        else:
            item = {"id": f"fc_{name}", "type": "function_call", "call_id": block.id, "name": block.name}
            item["arguments"] = ""
        item["status"] = "in_progress"
        self.items.append(item)
        return item

    def close(self, block: Block) -> dict[str, Any]:
        """End an item and return it."""
        item = self.items[-1]
        if block.kind == "call":
            item["arguments"] = block.text
        else:
            item["content"] = [_part(block, block.text)]
        item["status"] = self._status
        return item

    def frames(self, change: Change) -> list[bytes]:
        """Return the events of a change."""
        block, stem = change.block, _DELTAS[change.block.kind]
        item = self.open(block) if change.what == "open" else self.items[-1]
        place: dict[str, Any] = {"item_id": item["id"], "output_index": block.index}
        inside = place if block.kind == "call" else {**place, "content_index": 0}
        beside: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
        if change.what == "open":
            frames = [self.event("response.output_item.added", output_index=block.index, item=item)]
            if block.kind != "call":
                frames.append(self.event("response.content_part.added", **inside, part=_part(block, "")))
            return frames
        if change.what == "more":
            return [self.event(f"{stem}.delta", **inside, **beside, delta=change.piece)]
        item, key = self.close(block), "arguments" if block.kind == "call" else "text"
        named = {"name": block.name} if block.kind == "call" else {}
        frames = [self.event(f"{stem}.done", **inside, **beside, **named, **{key: block.text})]
        if block.kind != "call":
            frames.append(self.event("response.content_part.done", **inside, part=item["content"][0]))
        return [*frames, self.event("response.output_item.done", output_index=block.index, item=item)]

    def take(self, changes: Iterable[Change]) -> None:
        """Take changes without telling of them."""
        for change in changes:
            if change.what == "open":
                self.open(change.block)
            elif change.what == "close":
                self.close(change.block)


def _part(block: Block, text: str) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(work: Writing, result: Result) -> dict[str, Any]:
    spent = work.cost([result])["usage"]
    return {
        "input_tokens": spent["prompt_tokens"],
        "input_tokens_details": {**spent["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": spent["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": work.num_reasoning},
        "total_tokens": spent["total_tokens"],
        "outpace": spent["outpace"],
    }
