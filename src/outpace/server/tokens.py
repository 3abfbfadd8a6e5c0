"""/tokenize and /detokenize, in vLLM's form and in llama.cpp's."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from outpace.errors import ConfigError
from outpace.server.asking import chat_arguments, check_fields, encode, encode_chat
from outpace.server.errors import Refused
from outpace.server.route import new_router
from outpace.server.schemas import DetokenizeBody, TokenizeBody
from outpace.server.serving import Served, json_response

__all__ = ["router"]

router = new_router()


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, served: Served, request: Request) -> Response:
    """Return the ids of a text or of a conversation: {prompt | messages} as with vLLM, {content} as with llama.cpp."""
    engine = served.engine(body.model)
    check_fields(body, request.scope)
    given = [name for name in ("prompt", "messages", "content") if getattr(body, name) is not None]
    if len(given) != 1:
        raise Refused(400, "Give one of prompt, messages and content.", param="prompt", code="invalid_value")
    if body.messages is not None:
        _, ids = await encode_chat(engine, body.messages, chat_arguments(body, engine, request.scope, body.tools))
    elif body.prompt is not None:
        ids = await encode(engine, body.prompt, body.add_special_tokens is not False)
    else:
        ids = await encode(engine, body.content or "", bool(body.add_special))
    names = [engine.tokenizer.token(token) for token in ids] if engine.tokenizer else []
    if body.content is not None:
        pieces = [{"id": token, "piece": name} for token, name in zip(ids, names, strict=True)]
        return json_response({"tokens": pieces if body.with_pieces else ids})
    told: dict[str, Any] = {"count": len(ids), "max_model_len": engine.traits.context, "tokens": ids}
    return json_response({**told, "token_strs": names if body.return_token_strs else None})


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, served: Served, request: Request) -> Response:
    """Return the text of ids: as `prompt` for vLLM's clients, as `content` for llama.cpp's."""
    engine = served.engine(body.model)
    check_fields(body, request.scope)
    if engine.tokenizer is None:
        raise Refused(400, "The model has no tokenizer.", param="model")
    if any(token >= engine.traits.vocab_size for token in body.tokens):
        raise ConfigError("tokens holds an id outside the vocabulary.", f"Ids end at {engine.traits.vocab_size - 1}.")
    text = engine.tokenizer.decode(body.tokens, skip_special=False)
    return json_response({"prompt": text, "content": text})
