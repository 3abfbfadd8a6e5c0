"""What the server is and holds: its models, its health, its version; and a way to stop a request."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Response

import outpace
from outpace.engine.face import Face, Gone
from outpace.server.errors import Refused
from outpace.server.route import new_router
from outpace.server.serving import Served, json_response

__all__ = ["router"]

router = new_router()
_PATIENCE_S = 10.0  # an engine that says nothing for so long counts as dead


@router.get("/health")
async def health(served: Served) -> Response:
    """Say whether every engine answers; 503 with their names where one does not."""
    alive = await asyncio.gather(*map(_is_alive, served.engines.values()))
    dead = [name for name, is_alive in zip(served.engines, alive, strict=True) if not is_alive]
    if dead:
        raise Refused(503, f"Not answering: {', '.join(dead)}.", code="engine_gone", retry_s=5)
    return json_response({"status": "ok"})


async def _is_alive(engine: Face) -> bool:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return (await engine.load()).is_alive
    except (Gone, TimeoutError):
        return False


@router.get("/version")
async def version() -> Response:
    """Say which version serves."""
    return json_response({"version": outpace.__version__})


@router.get("/v1/models")
async def models(served: Served) -> Response:
    """List the models."""
    found = [_model(name, engine) for name, engine in served.engines.items()]
    return json_response({"object": "list", "data": found})


@router.get("/v1/models/{name:path}")
async def model(name: str, served: Served) -> Response:
    """Describe one model."""
    return json_response(_model(name, served.engine(name)))


@router.post("/v1/requests/{request_id}/abort")
async def abort(request_id: str, served: Served) -> Response:
    """Stop the request with this id (its X-Request-Id): it ends with what is written, as "cancelled"."""
    stopped = served.abort(request_id)
    if not stopped:
        raise Refused(404, "No request of this id is running.", param="request_id", code="request_not_found")
    return json_response({"id": request_id, "aborted": stopped})


def _model(name: str, engine: Face) -> dict[str, Any]:
    traits = engine.traits
    return {
        "id": name,
        "object": "model",
        "created": traits.created,
        "owned_by": "outpace",
        "root": name,
        "parent": None,
        "max_model_len": traits.context,
        "outpace": {
            "vocab_size": traits.vocab_size,
            "is_canvas": traits.is_canvas,
            "is_encoder_decoder": traits.is_encoder_decoder,
            "has_chat": traits.has_chat,
            "has_embeddings": traits.has_hidden,
            "defaults": dict(traits.defaults),
        },
    }
