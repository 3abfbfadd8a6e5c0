"""The application: routes behind a gate, over engines that are known by their faces alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import outpace
from outpace.engine.face import Face
from outpace.errors import ConfigError, OutpaceError
from outpace.server import (
    chat,
    completions,
    embeddings,
    listing,
    messages,
    page,
    prometheus,
    responses,
    tokens,
)
from outpace.server.errors import Refused, error_body, refusal
from outpace.server.gate import WARNINGS, Gate
from outpace.server.serving import Serving, json_response
from outpace.server.settings import ServerSettings

__all__ = ["create_app"]

_KINDS = ("str", "list[str]")  # what pydantic calls the first kind of a field that may be of several

ROUTERS: tuple[APIRouter, ...] = (
    chat.router,
    completions.router,
    responses.router,
    messages.router,
    embeddings.router,
    tokens.router,
    listing.router,
    prometheus.router,
    page.router,
)


def create_app(
    engines: Mapping[str, Face], settings: ServerSettings | None = None, *, closes_engines: bool = True
) -> FastAPI:
    """Return an ASGI application that serves models.

    Args:
        engines: by the name that requests use.
        settings: limits, keys and defaults.
        closes_engines: the engines end with the application.

    Raises:
        ConfigError: no engine.
    """
    if not engines:
        raise ConfigError("There is no model to serve.", "Name one, such as --model stories.")
    serving = Serving(engines, settings or ServerSettings())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        yield
        if closes_engines:
            await serving.close()

    app = FastAPI(
        title="Outpace",
        version=outpace.__version__,
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.serving = serving
    for router in ROUTERS:
        app.include_router(router)
    for kind in (OutpaceError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _tell)
    app.add_middleware(Gate, settings=serving.settings)
    if serving.settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=serving.settings.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", WARNINGS, "retry-after"],
        )
    return app


async def _tell(request: Request, error: Exception) -> Response:
    refused = _invalid(error) if isinstance(error, RequestValidationError) else refusal(error)
    told = error_body(refused, request.url.path, request.state.request_id)
    return json_response(told, refused.status_code, refused.headers)


def _invalid(error: RequestValidationError) -> Refused:
    """Return the first thing that is wrong with a body, in a sentence."""
    errors = error.errors()
    first, place = errors[0], _place(errors[0])
    if first["type"] in ("json_invalid", "missing") and not place:
        return Refused(400, "The request's body has to be a JSON object.", code="invalid_json")
    if first["type"] == "json_invalid":
        return Refused(400, f"The request's body is no JSON: {first['ctx']['error']}.", code="invalid_json")
    if first["type"] in ("model_attributes_type", "dict_type") and not place:
        said = "Send a JSON object, with Content-Type: application/json."
        return Refused(400, f"The request's body is no JSON object. {said}", code="invalid_json")
    if place[1:] and place[1] in _KINDS:  # one error for each kind that a field may be of: none alone says it
        message = f"{place[0]} is of none of the kinds that belong there."
        return Refused(400, message, param=place[0], code="invalid_value")
    where = ".".join(place)
    return Refused(400, f"{where}: {first['msg']}."[:500], param=where or None, code="invalid_value")


def _place(error: Mapping[str, Any]) -> list[str]:
    return [str(part) for part in error["loc"] if part != "body"]
