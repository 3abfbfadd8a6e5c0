"""/v1/embeddings: texts as vectors of length 1, from a model's last hidden states."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field

from outpace.server.asking import check_fields, encode
from outpace.server.errors import Refused
from outpace.server.route import new_router
from outpace.server.schemas import Body, Id
from outpace.server.serving import Served, json_response

__all__ = ["EmbeddingBody", "router"]

router = new_router()


class Pooled(BaseModel):
    """What Outpace takes beyond others, under the key `outpace`.

    Attributes:
        pooling: "mean" of all tokens' states, or the "last" one's.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    pooling: Literal["mean", "last"] = "mean"


class EmbeddingBody(Body):
    """Body of /v1/embeddings.

    Attributes:
        dimensions: the vectors' first ones, brought to length 1 again: of use for models that are trained so.
    """

    model: str | None = None
    input: str | list[str] | list[Id] | list[list[Id]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None
    outpace: Pooled | None = None


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingBody, served: Served, request: Request) -> Response:
    """Turn texts into vectors."""
    engine = served.engine(body.model)
    check_fields(body, request.scope)
    texts = _texts(body, served.settings.max_prompts)
    ids = [await encode(engine, text) if isinstance(text, str) else text for text in texts]
    pooling = (body.outpace or Pooled()).pooling
    vectors = await served.finish(request, engine.embed(ids, pooling))
    told = [_told(body, index, np.array(vector)) for index, vector in enumerate(vectors)]
    count = sum(map(len, ids))
    return json_response(
        {
            "object": "list",
            "data": told,
            "model": body.model or next(iter(served.engines)),
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }
    )


def _texts(body: EmbeddingBody, most: int) -> list[str | list[int]]:
    """Return the texts, each as it came.

    Raises:
        Refused: none, too many, or an empty one.
    """
    given: Any = body.input
    is_single = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
    texts = [given] if is_single else list(given)
    if not texts or not all(texts):
        raise Refused(400, "A text is empty. Give at least one character.", param="input", code="invalid_value")
    if len(texts) > most:
        message = f"input holds {len(texts)} texts; at most {most} are taken."
        raise Refused(400, message, param="input", code="invalid_value")
    return texts


def _told(body: EmbeddingBody, index: int, vector: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, Any]:
    if body.dimensions is not None and body.dimensions != len(vector):
        if body.dimensions > len(vector):
            message = f"dimensions is {body.dimensions}, but the model's vectors have {len(vector)}."
            raise Refused(400, message, param="dimensions", code="invalid_value")
        vector = vector[: body.dimensions]
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    if body.encoding_format == "base64":
        told: Any = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    else:
        told = vector.tolist()
    return {"object": "embedding", "index": index, "embedding": told}
