"""One client of an OpenAI-compatible server: a connection that is kept, and a clock beside every answer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from outpace.errors import ConfigError

__all__ = ["Answer", "Client", "LostError"]


class LostError(Exception):
    """No whole answer came back; the text says why."""


@dataclass(slots=True)
class Answer:
    """What a server said to one request, and when.

    Attributes:
        status: of HTTP.
        text: of the first choice.
        tokens: its ids, where the server tells them.
        finish: why it ended; "" where the stream was left before.
        usage: as the server counts.
        error: what it said instead.
        began: when the request was sent, in seconds of `time.perf_counter`.
        times: when each piece came that held text or tokens; one, the end, where nothing was streamed.
    """

    status: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)
    began: float = 0.0
    times: list[float] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens written, as the server counts."""
        return int(self.usage.get("completion_tokens") or len(self.tokens))

    @property
    def first_s(self) -> float:
        """Seconds until the first text was there."""
        return self.times[0] - self.began if self.times else float("nan")

    @property
    def total_s(self) -> float:
        """Seconds until the last text was there."""
        return self.times[-1] - self.began if self.times else float("nan")

    @property
    def token_s(self) -> float:
        """Seconds per token after the first piece, by the server's count of tokens; NaN where one piece was all."""
        behind = self.num_tokens - 1
        return (self.times[-1] - self.times[0]) / behind if len(self.times) > 1 and behind > 0 else float("nan")

    @property
    def gaps_s(self) -> list[float]:
        """Seconds from each piece to the next. A piece holds all tokens that one step made final."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]


class Client:
    """One connection, used by one thread.

    Args:
        url: where the server listens, e.g. "http://127.0.0.1:8000".
        timeout_s: of silence.

    Raises:
        ConfigError: the address is no http:// one.
    """

    def __init__(self, url: str, timeout_s: float = 600.0) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port or 80
        except ValueError:
            port = 0
        if parts.scheme != "http" or not parts.hostname or not port:
            raise ConfigError(f"{url!r} is no address of a server.", "Write it like http://127.0.0.1:8000.")
        self._connection = HTTPConnection(parts.hostname, port, timeout=timeout_s)
        self._response: HTTPResponse | None = None  # it holds the socket, too

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of a page.

        Raises:
            LostError: none came.
        """
        return self._said(self._request("GET", path, None))

    def post(self, path: str, body: Mapping[str, Any] | bytes, *, leave_after: int = 0) -> Answer:
        """Send a request and read the whole answer.

        Args:
            path: e.g. "/v1/completions".
            body: JSON, or bytes as they are.
            leave_after: close the connection behind this many pieces of a stream; 0 = read to the end.

        Raises:
            LostError: the connection broke, the server was silent for too long, or a stream ended without its end.
        """
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = Answer(0, began=time.perf_counter())
        response = self._request("POST", path, data)
        answer.status = response.status
        try:
            if response.headers.get_content_type() == "text/event-stream":
                if not self._read_stream(response, answer, leave_after) and not leave_after:
                    raise LostError("the stream ended without [DONE]")
            else:
                self._read_whole(response, answer)
        except (OSError, HTTPException, ValueError) as error:
            self.close()
            raise LostError(f"{type(error).__name__}: {error}") from error
        return answer

    def send_half(self, path: str, body: bytes) -> None:
        """Send the beginning of a request, and go away."""
        self.close()
        with suppress(OSError):
            self._connection.connect()
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {2 * len(body) + 2}\r\n\r\n"
            self._connection.sock.sendall(head.encode() + body)
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def _request(self, verb: str, path: str, body: bytes | None) -> HTTPResponse:
        head = {} if body is None else {"Content-Type": "application/json"}
        is_kept = self._connection.sock is not None
        try:
            self._connection.request(verb, path, body, head)
            self._response = self._connection.getresponse()
            return self._response
        except (OSError, HTTPException) as error:
            self.close()
            # A server may close an idle connection just as it is used again: nothing was answered, so ask once more.
            if is_kept and isinstance(error, ConnectionError):
                return self._request(verb, path, body)
            raise LostError(f"{type(error).__name__}: {error}") from error

    def _said(self, response: HTTPResponse) -> tuple[int, str]:
        try:
            return response.status, response.read().decode("utf-8", "replace")
        except (OSError, HTTPException) as error:
            self.close()
            raise LostError(f"{type(error).__name__}: {error}") from error

    def _read_whole(self, response: HTTPResponse, answer: Answer) -> None:
        data = json.loads(response.read())
        answer.times.append(time.perf_counter())
        if "choices" in data:
            _take(answer, data)
        else:
            found = data.get("error", data.get("detail", data))
            answer.error = found if isinstance(found, dict) else {"message": str(found)}

    def _read_stream(self, response: HTTPResponse, answer: Answer, leave_after: int) -> bool:
        """Read events; return whether the stream came to its end."""
        for data in _events(response):
            if data == "[DONE]":
                response.read()  # what ends the body, so that the connection can be used again
                return True
            event = json.loads(data)
            if "error" in event:
                answer.error = event["error"]
            if _take(answer, event):
                answer.times.append(time.perf_counter())
            if leave_after and len(answer.times) >= leave_after:
                self.close()
                return False
        return False


def _events(response: HTTPResponse) -> Iterator[str]:
    while line := response.readline():
        if line.startswith(b"data:"):
            yield line[5:].strip().decode("utf-8")


def _take(answer: Answer, data: Mapping[str, Any]) -> bool:
    """Add an answer, or a piece of one; return whether it held text or tokens."""
    answer.usage = data.get("usage") or answer.usage
    has_more = False
    for choice in data.get("choices") or []:
        said = choice.get("delta") or choice.get("message") or choice
        text, tokens = said.get("text") or said.get("content") or "", choice.get("token_ids") or []
        answer.text += text
        answer.tokens += tokens
        answer.finish = choice.get("finish_reason") or answer.finish
        has_more = has_more or bool(text or tokens)
    return has_more
