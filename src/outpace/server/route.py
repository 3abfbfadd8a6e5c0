"""Routes whose bodies orjson reads: fast, and as strict as JSON is (no NaN, no text that is no UTF-8)."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from outpace.server.errors import Refused

__all__ = ["new_router"]

_DEEPEST = 100  # levels; what reads schemas and templates goes down by recursion


class _Request(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            body = await self.body()
            self._json = orjson.loads(body)
            if body.count(b"[") + body.count(b"{") > _DEEPEST and _is_deeper(self._json, _DEEPEST):
                raise Refused(400, f"The request is nested more than {_DEEPEST} levels deep.", code="invalid_json")
        return self._json


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read(request: Request) -> Response:
            return await handle(_Request(request.scope, request.receive))

        return read


def _is_deeper(value: Any, most: int) -> bool:
    """Return whether lists and objects are nested in more levels than so many."""
    level = [value] if type(value) in (list, dict) else []
    for _ in range(most):
        inner = (it.values() if isinstance(it, dict) else it for it in level)
        level = [one for many in inner for one in many if type(one) in (list, dict)]
        if not level:
            return False
    return True


def new_router() -> APIRouter:
    """Return a router for `create_app` to include."""
    return APIRouter(route_class=_Route)
