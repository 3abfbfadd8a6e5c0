"""The gate in front of every route: who may ask, how much, how many at a time; it holds no knowledge of models."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from outpace.server.errors import Refused, error_body, refusal

if TYPE_CHECKING:
    from outpace.server.settings import ServerSettings

__all__ = ["REQUEST_ID", "WARNINGS", "Gate", "warn"]

_LOG = logging.getLogger("outpace.server")
REQUEST_ID = re.compile(r"[\w.:/=+-]{1,128}", re.ASCII)
# Open without a key: whether it lives, and the page, which holds nothing of anybody.
_OPEN = ("/health", "/", "/favicon.ico")
_OPEN_BELOW = "/page/"
_UNCOUNTED = ("/health", "/metrics", "/outpace/load", "/version")
_WASTE_S, _WASTE = 5.0, 256 << 20  # how long, and how many bytes, a refused body is still taken in and dropped
WARNINGS = "x-outpace-warning"


def warn(scope: Scope, sentence: str) -> None:
    """Tell the client something in its answer's header."""
    scope["state"].setdefault("warnings", []).append(sentence)


class Gate:
    """ASGI middleware: request ids, hosts, keys, limits on body, time and number, errors, a line of log per request.

    The body is read here, whole and bounded, so that half a request or a slow one takes up nothing behind the gate.

    Args:
        app: what lies behind it.
        settings: its limits and keys.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app, self._settings, self._num_open = app, settings, 0
        self._keys = [key.encode() for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, path = time.perf_counter(), 0, scope["path"]
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        state = scope.setdefault("state", {})
        state["request_id"] = asked if REQUEST_ID.fullmatch(asked) else f"req-{uuid.uuid4().hex}"
        state["tickets"] = []

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = MutableHeaders(scope=message)
                told["x-request-id"] = state["request_id"]
                told["x-content-type-options"] = "nosniff"
                if state.get("warnings"):
                    told[WARNINGS] = _header(state["warnings"])
            await send(message)

        is_counted = path not in _UNCOUNTED
        self._num_open += is_counted
        try:
            self._check(scope, headers)
            body = await self._read(headers, receive)
            if self._settings.logs_requests and body:
                _LOG.info("%s asks %r", state["request_id"], body.decode(errors="replace"))
            await self._app(scope, _replay(body, receive), answer)
        except Exception as error:
            if status:
                raise
            if refusal(error).status_code == 500:
                _LOG.exception("%s failed", state["request_id"])
            await self._refuse(refusal(error), path, state["request_id"], answer)
            if isinstance(error, Refused) and error.status_code in (408, 413):
                await _waste(receive)
        finally:
            self._num_open -= is_counted
            spent = time.perf_counter() - began
            _LOG.info("%s %s %r %d %.3fs", state["request_id"], scope["method"], path, status, spent)

    def _check(self, scope: Scope, headers: Headers) -> None:
        settings, path = self._settings, scope["path"]
        _check_host(settings.hosts, headers)
        _check_origin(settings.origins, headers)
        is_open = path in _OPEN or path.startswith(_OPEN_BELOW)
        if self._keys and not is_open and scope["method"] != "OPTIONS" and not self._is_known(headers):
            raise Refused(
                401,
                "A valid key is needed: Authorization: Bearer KEY, or x-api-key: KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if self._num_open > settings.max_requests:
            raise Refused(
                429, f"{settings.max_requests} requests are running. Ask again later.", code="too_many", retry_s=1
            )

    def _is_known(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        found = [given.strip()] if scheme.lower() == "bearer" else []
        found += [headers["x-api-key"].strip()] if "x-api-key" in headers else []
        # Every key is compared, in a time that does not tell how much of it was right.
        matches = [hmac.compare_digest(one.encode(errors="replace"), key) for one in found for key in self._keys]
        return any(matches)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        """Return the body.

        Raises:
            Refused: it is too large, or does not come.
        """
        most = self._settings.max_body
        too_large = Refused(413, f"The request is larger than {most} bytes. Send less.", code="request_too_large")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > most:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._settings.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refused(499, "The client went away.", code="client_gone")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            wanted = f"The request's body was not there after {self._settings.body_timeout_s:g} s."
            raise Refused(408, f"{wanted} Send it whole.", code="body_timeout") from None

    async def _refuse(self, refused: Refused, path: str, name: str, send: Send) -> None:
        content = orjson.dumps(error_body(refused, path, name))
        headers = {"content-type": "application/json", "content-length": str(len(content)), **(refused.headers or {})}
        if refused.status_code in (408, 413):  # what is left of the body is in the way of a next request
            headers["connection"] = "close"
        raw = [(key.lower().encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]
        await send({"type": "http.response.start", "status": refused.status_code, "headers": raw})
        await send({"type": "http.response.body", "body": content})


def _check_host(hosts: Sequence[str], headers: Headers) -> None:
    name = re.sub(r":\d+$", "", headers.get("host", ""))
    if hosts and name.lower() not in hosts:
        raise Refused(403, "The server is not known under this Host. Name it with --allow-host.", code="unknown_host")


def _check_origin(origins: Iterable[str], headers: Headers) -> None:
    """Refuse what another site's page sends: browsers say where a page comes from."""
    origin = headers.get("origin")
    if origin is None or origin in origins or "*" in origins:
        return
    if origin.partition("://")[2] != headers.get("host", ""):
        raise Refused(403, "Pages of this origin may not ask. Name it with --allow-origin.", code="unknown_origin")


def _header(sentences: Sequence[str]) -> str:
    """Return sentences as the value of a header: visible ASCII, and not too much of it."""
    text = " ".join(dict.fromkeys(sentences))
    return re.sub(r"[^\x20-\x7e]", "?", text)[:1000]


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a channel that gives the body that was read, then what comes after it."""
    is_given = False

    async def replayed() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _waste(receive: Receive) -> None:
    """Take in what is left of a body: a client that still sends would else lose the answer with the connection."""
    size = 0
    try:
        async with asyncio.timeout(_WASTE_S):
            while size < _WASTE:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
