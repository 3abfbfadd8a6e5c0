"""An engine that writes what a test says, as fast as it says, behind a server that drops its connections when told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import uvicorn

from outpace.api.result import Result
from outpace.engine.face import Ask, Face, Load, Piece, Ticket, Token, Traits

TEXT = " the quick brown fox jumps over the lazy dog, and then the fox sleeps and the dog jumps over the fox."


class Script(Ticket):
    """Pieces that stand fixed; from the third on they wait until the test lets them go, where it holds them."""

    def __init__(self, face: Scripted, pieces: list[Piece], prompt: list[int]) -> None:
        self.face, self.pieces, self.prompt_tokens = face, pieces, prompt
        self.is_cancelled = False

    async def __aiter__(self) -> AsyncIterator[Piece]:
        for number, piece in enumerate(self.pieces):
            while number >= 2 and self.face.is_held and not self.is_cancelled:
                await asyncio.sleep(0.005)
            if self.is_cancelled:
                yield Piece(0, [], "cancelled")
                return
            yield piece

    async def results(self) -> list[Result]:
        return []

    def cancel(self) -> None:
        self.is_cancelled = True


class Scripted(Face):
    """An engine that always writes the same text, plainly or in steps of three behind a small tree of drafts."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.traits = Traits("scripted", context=512, vocab_size=4096, has_chat=True, end_tokens=(0,))
        self.is_held, self.is_cut, self.tickets = False, False, list[Script]()

    async def submit(self, ask: Ask) -> Ticket:
        method, ids = ask.arguments.get("method"), self.tokenizer.encode(TEXT)
        if method == "alignment":  # a method that may change the text
            ids = [*ids[:5], *reversed(ids[5:])]
        pieces = self.plainly(ids) if method == "autoregressive" else self.drafted(ids)
        pieces[-1].finish = "length"
        self.tickets.append(Script(self, pieces, list(ask.prompt)))  # type: ignore[call-overload]
        return self.tickets[-1]

    def plainly(self, ids: list[int]) -> list[Piece]:
        return [Piece(0, [self.token(i, "plain")], step=step([], [], 0)) for i in ids]

    def drafted(self, ids: list[int]) -> list[Piece]:
        pieces = []
        for number, at in enumerate(range(0, len(ids), 3)):
            own = ids[at : at + 3]
            drafter = ("suffix", "token-recycling")[number % 2]
            sources = ["draft", "draft", "bonus"] if number % 3 else ["draft", "recovered", "plain"]
            tokens = [self.token(i, source, drafter) for i, source in zip(own, sources, strict=False)]
            kept = sum(token.source == "draft" for token in tokens)
            drafts = [*own[:2], 7, 8]  # the text's own next tokens, and two children of the root that are not
            if number % 3 == 0:
                drafts[1:2] = [9]  # the second draft is refused
            pieces.append(Piece(0, tokens, step=step(drafts, [-1, 0, -1, -1], kept, drafter)))
        return pieces

    def token(self, token: int, source: str, drafter: str = "") -> Token:
        text = self.tokenizer.decode([token])
        return Token(token, text, source, drafter if source == "draft" else "", log_prob=-0.5)

    async def embed(self, texts: Any, pooling: str = "mean") -> list[list[float]]:
        raise AssertionError

    async def load(self) -> Load:
        return Load(running=3, waiting=2, pages=8, pages_used=2)

    async def close(self, drain_s: float = 30.0) -> None:
        pass


def step(tokens: list[int], parents: list[int], accepted: int, drafter: str = "") -> dict[str, Any]:
    return {
        "proposed": len(tokens),
        "accepted": accepted,
        "drafter": drafter,
        "tokens": tokens,
        "parents": parents[: len(tokens)],
    }


def cutting(app: Any, face: Scripted) -> Any:
    """Return an application that drops its connections in mid-answer where the test says so."""

    async def cut(scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if face.is_cut:
                raise ConnectionError
            await send(message)

        await app(scope, receive, sent)

    return cut


def serve(app: Any) -> tuple[uvicorn.Server, threading.Thread, str]:
    """Run an application on a free port of this machine."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    return server, thread, f"http://127.0.0.1:{socket.getsockname()[1]}/"
