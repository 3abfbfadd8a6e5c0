"""A port, and uvicorn on it: says where it listens, and ends when it is told to."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from outpace.engine.face import Face
from outpace.errors import ConfigError
from outpace.server.app import create_app
from outpace.server.settings import ServerSettings

__all__ = ["address", "bind", "run", "server"]

_KEEP_ALIVE_S = 30


def bind(host: str, port: int) -> socket.socket:
    """Return a socket at an address, which nobody can connect to yet.

    Raises:
        ConfigError: the address is none of this machine's, or is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, place = found[0]
        made = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"There is no address {host}: {error.strerror}.", "Use 127.0.0.1.") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
    except OSError as error:
        made.close()
        raise ConfigError(f"{host}:{port} cannot be had: {error.strerror}.", "Choose another --port.") from None
    return made


def address(bound: socket.socket) -> str:
    """Return the URL that a socket is reached by."""
    host, port = bound.getsockname()[:2]
    place = ipaddress.ip_address(host)
    if place.is_unspecified:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Protocol(H11Protocol):
    """Ends connections that ask nothing for long, or never send the whole head of a request."""

    patience_s = 60.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._is_waiting = False
        self._look_later()

    def _look_later(self) -> None:
        self.loop.call_later(self.patience_s, self._look)

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        cycle: Any = self.cycle  # None until a request's head is whole
        is_idle = cycle is None or cycle.response_complete
        if is_idle and self._is_waiting:  # twice in a row
            self.transport.close()
            return
        self._is_waiting = is_idle
        self._look_later()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()


def server(
    engines: Mapping[str, Face], settings: ServerSettings, on_ready: Callable[[], None] = lambda: None
) -> uvicorn.Server:
    """Return a server that is not started: `await serve(sockets=[socket])` runs it, `should_exit = True` ends it.

    Args:
        engines: by name.
        settings: limits and keys.
        on_ready: called when it listens.
    """
    config = uvicorn.Config(
        create_app(engines, settings),
        log_config=None,
        access_log=False,
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        http=type("Protocol", (_Protocol,), {"patience_s": settings.body_timeout_s}),
    )
    return _Server(config, on_ready)


def run(engines: Mapping[str, Face], settings: ServerSettings, bound: socket.socket, is_logged: bool = False) -> None:
    """Serve until a signal ends it; what runs then is let finish.

    Args:
        engines: by name.
        settings: limits and keys.
        bound: of `bind`.
        is_logged: a line per request goes to standard error.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("outpace.server").setLevel(logging.INFO if is_logged else logging.WARNING)

    def say() -> None:
        sys.stdout.write(f"Serving {', '.join(engines)} at {address(bound)}\n")
        sys.stdout.flush()

    asyncio.run(server(engines, settings, say).serve(sockets=[bound]))
