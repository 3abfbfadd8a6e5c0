"""Why a request was refused or failed, in the shape that its client reads: OpenAI's, or Anthropic's on its routes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException

from outpace.engine.face import Busy, Gone
from outpace.errors import CapabilityError, ConfigError, OutpaceError

__all__ = ["Refused", "error_body", "refusal"]

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    499: "cancelled_error",
    500: "server_error",
    503: "service_unavailable_error",
}
_ANTHROPIC_KINDS = {413: "request_too_large", 408: "timeout_error", 500: "api_error", 503: "overloaded_error"}
# Our names of what requests call otherwise.
_FIELDS = {
    "num_samples": "n",
    "stop_tokens": "stop_token_ids",
    "top_log_probs": "top_logprobs",
    "json_schema": "response_format",
    "keep_special": "skip_special_tokens",
}
_NAMED = re.compile(r"(?:There is no argument ')?([a-z][a-z0-9_]*)\b(?=[ ']+(?:is|has|must|holds|were|was)|'\.)")
_TOO_LONG = re.compile(r"has \d+ tokens, but .*context is \d+")


class Refused(HTTPException):
    """A request that is not served.

    Attributes:
        message: what is wrong and what to do.
        param: the field at fault.
        code: for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        told = dict(headers or {})
        if retry_s is not None:
            told["Retry-After"] = str(max(1, math.ceil(retry_s)))
        super().__init__(status, message, told)
        self.message, self.param, self.code = message, param, code

    @property
    def kind(self) -> str:
        """OpenAI's type of the error."""
        return _KINDS.get(self.status_code, "invalid_request_error" if self.status_code < 500 else "server_error")

    def told(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}


def refusal(error: BaseException) -> Refused:
    """Return what a client is told of an error; of one that nobody foresaw, nothing but that it happened."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):
        return Refused(error.status_code, str(error.detail), headers=error.headers)
    message = f"{error} {getattr(error, 'hint', '')}".strip()
    if isinstance(error, Busy):
        return Refused(429, message, code="queue_full", retry_s=error.retry_s)
    if isinstance(error, Gone):
        return Refused(503, message, code="engine_gone", retry_s=5)
    if isinstance(error, ConfigError | CapabilityError):
        if _TOO_LONG.search(message):
            return Refused(400, message, param="messages", code="context_length_exceeded")
        named = _NAMED.match(message)
        param = None if named is None else _FIELDS.get(named[1], named[1])
        return Refused(400, message, param=param, code="invalid_value")
    if isinstance(error, RecursionError):
        return Refused(400, "The request is nested too deeply. Simplify it.", code="invalid_value")
    if isinstance(error, OutpaceError):
        return Refused(500, message, code=type(error).__name__)
    return Refused(500, "The server made a mistake; its log says more.", code="internal_error")


def error_body(refused: Refused, path: str, request_id: str) -> dict[str, Any]:
    """Return the body of an answer that tells of an error.

    Args:
        refused: the error.
        path: of the request; Anthropic's clients ask under /v1/messages.
        request_id: of the request.
    """
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC_KINDS.get(refused.status_code, refused.kind)
        return {"type": "error", "error": {"type": kind, "message": refused.message}, "request_id": request_id}
    return {"error": refused.told()}
