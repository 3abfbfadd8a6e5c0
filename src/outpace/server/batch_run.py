"""Answering the lines of a batch: many at once, each error its own line's, in this process or by workers elsewhere."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from outpace.api.result import Result
from outpace.engine.face import Ask, Busy, Face, Gone
from outpace.errors import ConfigError, OutpaceError
from outpace.server.batch_file import Answers, Line

__all__ = ["Answerer", "Plan", "Tally", "answer_all", "failed", "here"]

_TRIES = 1000  # of an engine that is busy, before a line is given up
_LOOK_S = 0.25  # between two looks at whether the run is to end
_LONG_S, _LARGE = 7 * 86400.0, 1 << 30  # what a line of one's own may take: seconds, bytes
_APART = ("prompt", "text", "messages", "id", "priority", "chat")
App = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What answers a batch.

    Attributes:
        model: as `outpace.load` takes it; answers name it.
        load: arguments of `outpace.load`.
        defaults: arguments that hold where a line says nothing else.
        rows: lines under way per worker.
        workers: how many, on Ray.
    """

    model: str
    load: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    rows: int = 32
    workers: int = 1

    def answerer(self) -> Answerer:
        """Load the model into this process.

        Raises:
            ConfigError, ModelError: see `outpace.load`.
        """
        from outpace.engine.core import Engine
        from outpace.engine.limits import Limits

        engine = Engine(self.model, limits=Limits(max_rows=self.rows), **self.load)
        return Answerer(engine, self.model, self.defaults, lambda: _make_app(engine, self))


@asynccontextmanager
async def here(plan: Plan) -> AsyncIterator[Answerer]:
    """Yield what answers lines by an engine of this process."""
    answerer = plan.answerer()
    try:
        yield answerer
    finally:
        await answerer.engine.close(0.0)


class Answerer:
    """Answers lines by an engine of this process.

    Args:
        engine: writes.
        model: as answers call it.
        defaults: arguments that hold where a line says nothing else.
        make_app: returns the ASGI application that serves the engine; it is asked once a line has OpenAI's form.
    """

    def __init__(
        self, engine: Face, model: str, defaults: Mapping[str, Any], make_app: Callable[[], App] | None = None
    ) -> None:
        self.engine, self.model, self.defaults = engine, model, dict(defaults)
        self._make_app = make_app
        self._app: App | None = None

    async def __call__(self, line: Line) -> dict[str, Any] | None:
        """Return the answer to a line, its error where it has one; None = it was cancelled.

        Raises:
            Gone: the engine died.
        """
        try:
            if line.fault:
                raise ConfigError(line.fault, 'Write {"prompt": "..."}, one object a line.')
            return await (self._serve(line) if line.is_openai else self._write(line))
        except Gone:
            raise
        except OutpaceError as error:
            return failed(line, str(error), error.hint, type(error).__name__)
        except Exception as error:  # whatever a line brings about is that line's
            return failed(line, f"{type(error).__name__}: {error}", "Report it, with the line.", type(error).__name__)

    async def _write(self, line: Line) -> dict[str, Any] | None:
        ask = _ask(line, self.defaults)
        ticket = await self._submit(ask)
        try:
            results = await ticket.results()
        except asyncio.CancelledError:
            ticket.cancel()
            raise
        if any(result.finish_reason == "cancelled" for result in results):
            return None
        record = _record(line) | {
            "model": self.model,
            "prompt_tokens": len(ticket.prompt_tokens),
            "outputs": [_output(result) for result in results],
        }
        broken = next((result for result in results if result.finish_reason == "error"), None)
        if broken is not None:
            told = f"The text ended with an error after {len(broken.tokens)} tokens."
            record["error"] = {"type": "NumericalError", "message": told, "hint": " ".join(broken.notes)}
        return record

    async def _submit(self, ask: Ask) -> Any:
        for _ in range(_TRIES):
            try:
                return await self.engine.submit(ask)
            except Busy as busy:
                await asyncio.sleep(busy.retry_s)
        raise Busy("The engine stayed busy.", "Run the command again: it goes on with this line.")

    async def _serve(self, line: Line) -> dict[str, Any]:
        """Send a line of OpenAI's form through the server's own application, without a network."""
        if self._app is None:
            if self._make_app is None:
                raise ConfigError("Lines of OpenAI's form are not served here.", 'Write {"prompt": "..."}.')
            self._app = self._make_app()
        method, url, body = str(line.fields.get("method", "POST")), line.fields["url"], line.fields["body"]
        if method != "POST" or not isinstance(url, str) or not isinstance(body, dict):
            raise ConfigError("A line of OpenAI's form has a POST, a url and a body.", "See the page on scaling.")
        if body.get("stream"):
            raise ConfigError("A batch does not stream.", "Leave stream out.")
        for _ in range(_TRIES):
            status, data, retry_s = await _post(self._app, url, json.dumps(body).encode())
            if status not in (429, 503):
                break
            if not (await self.engine.load()).is_alive:
                raise Gone("The engine is dead.", "Run the command again: it goes on where it stopped.")
            await asyncio.sleep(retry_s)
        try:
            answer = json.loads(data)
        except ValueError:
            answer = {"error": {"message": data.decode(errors="replace")}}
        response = {"status_code": status, "request_id": line.digest, "body": answer}
        told = None if status < 400 else {"type": "Refused", "message": _told(answer), "hint": ""}
        record = _record(line) | {"custom_id": line.id, "response": response, "error": told}
        del record["id"]
        return {"id": f"batch_req_{line.digest}", **record}


def _make_app(engine: Face, plan: Plan) -> App:
    """Return the server's application for lines of OpenAI's form, without the limits that strangers need.

    Raises:
        ConfigError: what the server is made of is not installed.
    """
    try:
        from outpace.server.app import create_app
        from outpace.server.settings import ServerSettings
    except ImportError:
        raise ConfigError(
            "Lines of OpenAI's form need the server's packages.", "pip install 'outpace[serve]'."
        ) from None
    settings = ServerSettings(
        method=plan.defaults.get("method", "auto"),
        options=plan.defaults.get("options", {}),
        max_requests=2 * plan.rows,
        timeout_s=_LONG_S,
        max_body=_LARGE,
    )
    return create_app({plan.model: engine}, settings, closes_engines=False)


def failed(line: Line, message: str, hint: str, kind: str) -> dict[str, Any]:
    """Return the answer to a line that has none."""
    record = _record(line) | {"error": {"type": kind, "message": message, "hint": hint}}
    if line.is_openai:
        record |= {"id": f"batch_req_{line.digest}", "custom_id": line.id, "response": None}
    return record


def _record(line: Line) -> dict[str, Any]:
    return {"line": line.number, "id": line.id, "request": line.digest, "error": None}


def _ask(line: Line, defaults: Mapping[str, Any]) -> Ask:
    """Return what a line asks for.

    Raises:
        ConfigError: it has no prompt, or its priority or chat is none.
    """
    fields = line.fields
    given = [name for name in ("messages", "prompt", "text") if name in fields]
    if len(given) != 1:
        raise ConfigError(
            "The line has " + ("no prompt." if not given else f"both {' and '.join(given)}."),
            'Write {"prompt": "..."} or {"messages": [...]}.',
        )
    prompt, chat, priority = fields[given[0]], fields.get("chat", {}), fields.get("priority", 0)
    kinds = (str,) if given[0] == "text" else (list,) if given[0] == "messages" else (str, list)
    if not isinstance(prompt, kinds) or not prompt:
        raise ConfigError(f"The line's {given[0]} is empty, or no {'text' if str in kinds else 'list'}.")
    if isinstance(prompt, list) and len({type(item) for item in prompt} | {int, dict}) > 2:
        raise ConfigError(f"The line's {given[0]} is a list of neither messages nor tokens.", "One line, one prompt.")
    if not isinstance(chat, dict) or isinstance(priority, bool) or not isinstance(priority, int):
        raise ConfigError("The line's chat is no object, or its priority no whole number.", "Leave it out.")
    if "method" in fields:  # the options of another method are none of its own
        defaults = {name: value for name, value in defaults.items() if name != "options"}
    arguments = {**defaults, **{name: value for name, value in fields.items() if name not in _APART}}
    return Ask(prompt=prompt, arguments=arguments, id=str(line.number), priority=priority, chat=chat)


def _output(result: Result) -> dict[str, Any]:
    """Return what a sample came to, without what depends on the clock or on who was beside it."""
    found: dict[str, Any] = {"text": result.text, "tokens": result.tokens, "finish_reason": result.finish_reason}
    for name in ("log_probs", "top_log_probs", "filled"):
        if value := getattr(result, name):
            found[name] = _finite(value)
    return found


def _finite(value: Any) -> Any:
    """Return numbers in lists with None in place of infinite ones, which JSON lacks."""
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _told(answer: Any) -> str:
    error = answer.get("error") if isinstance(answer, dict) else None
    return str(error.get("message", error)) if isinstance(error, dict) else str(error or answer)


async def _post(app: App, url: str, body: bytes) -> tuple[int, bytes, float]:
    """Call an ASGI application; return status, body and what its Retry-After says, in seconds."""
    sent, answer = [body], list[dict[str, Any]]()
    over = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if sent:
            return {"type": "http.request", "body": sent.pop(), "more_body": False}
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        answer.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            over.set()

    path, _, query = url.partition("?")
    headers = [(b"host", b"batch"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
    }
    scope |= {"path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": ""}
    scope |= {"headers": headers, "client": ("127.0.0.1", 0), "server": ("127.0.0.1", 0), "state": {}}
    await app(scope, receive, send)
    first, told = answer[0], dict(answer[0].get("headers", ()))
    data = b"".join(message.get("body", b"") for message in answer[1:])
    try:
        retry_s = float(told.get(b"retry-after", b"1"))
    except ValueError:
        retry_s = 1.0
    return int(first["status"]), data, min(retry_s, 5.0)


@dataclass(slots=True)
class Tally:
    """How far a batch is.

    Attributes:
        total: lines of the file.
        before: of them answered by an earlier run.
        written: answered by this one, errors among them.
        errors: answered by an error, by any run.
        tokens: written by this run.
        is_cut: the run was asked to end before its end.
    """

    total: int = 0
    before: int = 0
    written: int = 0
    errors: int = 0
    tokens: int = 0
    is_cut: bool = field(default=False)

    def add(self, record: Mapping[str, Any]) -> None:
        """Count an answer."""
        self.written += 1
        self.errors += record["error"] is not None
        self.tokens += sum(len(output["tokens"]) for output in record.get("outputs", ()))
        body = (record.get("response") or {}).get("body")
        usage = body.get("usage") if isinstance(body, dict) else None
        if isinstance(usage, dict):
            self.tokens += int(usage.get("completion_tokens") or usage.get("output_tokens") or 0)


async def answer_all(
    lines: Iterator[Line],
    answer: Callable[[Line], Awaitable[dict[str, Any] | None]],
    answers: Answers,
    tally: Tally,
    *,
    most: int,
    is_wished: Callable[[], bool] = lambda: False,
    tell: Callable[[Tally], None] = lambda _: None,
) -> None:
    """Answer every line that has no answer yet, `most` at once, each written as soon as it is there.

    Args:
        lines: of the batch; they are read as they are needed.
        answer: answers one; None = it was cancelled, and stays open.
        answers: where to.
        tally: counted up.
        most: lines under way.
        is_wished: asked now and then; True ends the run, and what is under way stays open.
        tell: called after every answer.

    Raises:
        OutpaceError: of `answer`, which ends the run; what was answered until then is written.
    """
    due = (line for line in lines if line.number not in answers.done)
    running = set[asyncio.Task[dict[str, Any] | None]]()
    try:
        while True:
            while len(running) < most and not is_wished() and (line := next(due, None)) is not None:
                running.add(asyncio.ensure_future(answer(line)))
            if not running:
                tally.is_cut = is_wished()
                return
            async for record in _ended(running):
                answers.append(record)
                tally.add(record)
                tell(tally)
            if is_wished():
                tally.is_cut = True
                return
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _ended(running: set[asyncio.Task[dict[str, Any] | None]]) -> AsyncIterator[dict[str, Any]]:
    """Wait a moment for tasks that end, take them out and yield what they came to; then raise what one raised."""
    ended, _ = await asyncio.wait(running, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
    running -= ended
    faults = list[BaseException]()
    for task in ended:
        if (fault := task.exception()) is not None:
            faults.append(fault)
        elif (record := task.result()) is not None:
            yield record
    if faults:
        raise faults[0]
