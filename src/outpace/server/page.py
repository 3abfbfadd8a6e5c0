"""The page at `/`: static files that ask this server's own routes, and the load that the page shows."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files

import orjson
from fastapi import Request, Response

from outpace.methods.catalogue import methods
from outpace.server.errors import Refused
from outpace.server.route import new_router
from outpace.server.serving import Served, json_response

__all__ = ["router"]

router = new_router()

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
}
_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_FOR_EVER = "public, max-age=31536000, immutable"  # an asset's address changes with what it holds


@router.get("/", include_in_schema=False)
async def page(request: Request) -> Response:
    """Return the page; a browser that has it already is told so."""
    version, _ = _assets()
    headers = {**_HEADERS, "cache-control": "no-cache", "etag": f'"{version}"'}
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers=headers)
    return Response(_index(), headers=headers, media_type=_TYPES["html"])


@router.get("/page/{version}/{name}", include_in_schema=False)
async def asset(version: str, name: str) -> Response:
    """Return a file of the page; 404 for one of another version, whose parts would not fit together."""
    now, known = _assets()
    if version != now or name not in known:
        raise Refused(404, "The page has no such file. Load it again.", code="not_found")
    kind = _TYPES[name.rpartition(".")[2]]
    return Response(known[name], headers={**_HEADERS, "cache-control": _FOR_EVER}, media_type=kind)


@router.get("/outpace/load")
async def load(served: Served) -> Response:
    """Return what each engine holds and has done, by model: the fields of `outpace.engine.face.Load`."""
    found = {name: dataclasses.asdict(await engine.load()) for name, engine in served.engines.items()}
    return json_response({"models": found}, headers={"cache-control": "no-store"})


@lru_cache(maxsize=1)
def _assets() -> tuple[str, Mapping[str, bytes]]:
    """Return the files by name, and a hash of them all."""
    folder = files("outpace.server") / "page"
    found = {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _TYPES}
    found["methods.json"] = orjson.dumps(_methods())
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(name.encode() + b"\0" + found[name] + b"\0")
    return digest.hexdigest()[:16], found


def _index() -> bytes:
    version, known = _assets()
    return known["index.html"].replace(b'"page/', f'"page/{version}/'.encode())


def _methods() -> list[dict[str, object]]:
    """Return the methods that the page offers: those that need no other model, which a browser cannot bring."""
    return [
        {
            "name": entry["name"],
            "guarantee": entry["guarantee"],
            "summary": entry["summary"],
            "is_canvas": entry["needs"].get("attention", "causal") != "causal",
        }
        for entry in methods()
        if not entry["needs"].get("models")
    ]
