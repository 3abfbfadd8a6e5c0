"""From a request's fields to an ask of the engine: each field is obeyed, refused by name, or named in a header."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import Scope

from outpace import zoo
from outpace.engine.face import Face
from outpace.laws.registry import load_law
from outpace.methods.registry import load_method, read_spelled
from outpace.search.registry import load_search
from outpace.search.rewards import Reward
from outpace.server.errors import Refused
from outpace.server.gate import warn
from outpace.server.schemas import Body, Extra, Message, TextBody
from outpace.server.settings import ServerSettings
from outpace.server.structure import constraint
from outpace.server.tools_history import with_objects, with_texts

__all__ = ["arguments", "chat_arguments", "check_fields", "check_length", "encode", "encode_chat", "stop_strings"]

_LONGEST_STOP = 128  # characters
_SURELY_FIT = 16  # characters per token of the context, up to which nobody counts
_SLACK = 4  # times the characters of the longest tokens: some tokenizers drop or join what they do not know
_MOST_BIASES, _MOST_WORDS, _MOST_TOP = 1024, 128, 20
_MOST_DRAFTED = 1024  # of any option that is a number, unless its default is larger
_FREE_OPTIONS = ("arms", "delimiters", "marks", "strategy")  # texts that name no file
_READ_ELSEWHERE = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "json_schema", "regex", "ebnf")
_SAME = (  # fields that ours have the name of, too
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "min_tokens",
    "ignore_eos",
)
# What others serve and we do not, with the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": (),
    "audio": (),
    "detokenize": (True,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "input_embeds": (),
    "kv_transfer_params": (),
    "length_penalty": (1, 1.0),
    "logits_processors": ([],),
    "mirostat": (0,),
    "modalities": (["text"],),
    "prompt_embeds": (),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "chat_template": (),
    "vllm_xargs": (),
    "web_search_options": (),
}
_TEMPLATES_OWN = ("messages", "is_open", "tools", "documents", "template", "is_continued", "variables", "self")


def check_fields(body: Body, scope: Scope, *unserved: str) -> None:
    """Refuse what is known and not served, by name; name what is unknown in the answer's header.

    Args:
        body: of the request.
        scope: of the request, for the header.
        *unserved: known fields that this route does not serve.

    Raises:
        Refused: 400, with the field.
    """
    others = body.model_extra or {}
    for name in unserved:
        if getattr(body, name, None) not in (None, False):
            raise Refused(400, f"{name} is not served here. Leave it out.", param=name, code="unsupported_field")
    unknown = []
    for name, value in others.items():
        if name in _REFUSED:
            if value is not None and value not in _REFUSED[name]:
                raise Refused(400, f"{name} is not served. Leave it out.", param=name, code="unsupported_field")
        elif name not in (*_READ_ELSEWHERE, "grammar"):
            unknown.append(name[:100])
    if unknown:
        warn(scope, f"Unknown fields were ignored: {', '.join(unknown[:20])}.")


async def encode(engine: Face, text: str, is_special: bool = True) -> list[int]:
    """Return the ids of a text, outside the loop that serves everybody.

    Raises:
        Refused: the model has no tokenizer.
        ConfigError: the text holds what is no character.
    """
    if engine.tokenizer is None:
        raise Refused(400, "The model has no tokenizer. Give token ids.", param="prompt")
    return await asyncio.to_thread(engine.tokenizer.encode, text, is_special)


def check_length(engine: Face, text: str, param: str) -> None:
    """Refuse a text that no context holds, before so much of it is spelled in tokens.

    Args:
        engine: whose context it is.
        text: a prompt.
        param: the field that it is of.

    Raises:
        Refused: 400, it is many times as long as all tokens of a context can be.
    """
    traits, tokenizer = engine.traits, engine.tokenizer
    if tokenizer is None or traits.is_encoder_decoder or len(text) <= _SURELY_FIT * traits.context:
        return
    longest = max((len(spelling) for spelling in tokenizer.spellings if spelling), default=0)
    if longest and len(text) > _SLACK * longest * traits.context:
        message = f"The prompt has {len(text)} characters, far more than {traits.context} tokens say. Shorten it."
        raise Refused(400, message, param=param, code="context_length_exceeded")


async def encode_chat(engine: Face, messages: Sequence[Message], chat: Mapping[str, Any]) -> tuple[str, list[int]]:
    """Return the text and the ids of a conversation; `chat_arguments` makes `chat`.

    Raises:
        Refused: the model has no tokenizer.
        ConfigError: it has no chat template, or that refuses the messages.
    """
    if (tokenizer := engine.tokenizer) is None:
        raise Refused(400, "The model has no tokenizer, hence no chat template.", param="messages")
    if not messages:
        raise Refused(400, "The conversation is empty. Give at least one message.", param="messages")
    text = await asyncio.to_thread(tokenizer.render_chat, _messages(engine, messages), **chat)
    check_length(engine, text, "messages")
    return text, await encode(engine, text, False)


def _messages(engine: Face, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as templates read them: calls' arguments, which clients send as text, are objects.

    A developer's messages are the system's where the template knows no developers.

    Raises:
        Refused: 400, a part of a message that is no text.
    """
    templates = engine.tokenizer.templates if engine.tokenizer else {}
    has_developers = any("developer" in text for text in templates.values())
    given = [message.model_dump(exclude_unset=True) for message in messages]
    told = [with_texts(with_objects(message), f"messages[{number}]") for number, message in enumerate(given)]
    return [it if has_developers or it["role"] != "developer" else {**it, "role": "system"} for it in told]


def chat_arguments(body: Any, engine: Face, scope: Scope, tools: Any = None) -> dict[str, Any]:
    """Return what `Tokenizer.render_chat` takes beside messages.

    Args:
        body: a ChatBody or TokenizeBody.
        engine: whose template it is.
        scope: of the request; what the template does not look at is named in the answer's header.
        tools: that it is told of.

    Raises:
        Refused: a variable that would be something else, or two wishes that exclude each other.
    """
    variables, tools = dict(body.chat_template_kwargs or {}), tools or None
    taken = next((name for name in variables if name in _TEMPLATES_OWN), None)
    if taken is not None:
        raise Refused(400, f"chat_template_kwargs may not hold {taken}.", param="chat_template_kwargs")
    if body.continue_final_message and body.add_generation_prompt:
        message = "continue_final_message and add_generation_prompt exclude each other. Give one."
        raise Refused(400, message, param="continue_final_message")
    documents = getattr(body, "documents", None) or None
    given = {"tools": tools, "documents": documents, **variables}
    unread = _unread(engine, [name for name, value in given.items() if value is not None], tools, documents)
    if (effort := getattr(body, "reasoning_effort", None)) is not None:  # templates know it by one name or the other
        thinking = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
        unread += ["reasoning_effort"] if len(_unread(engine, list(thinking), tools, documents)) == 2 else []
        variables = {**thinking, **variables}
    if unread:
        warn(scope, f"The chat template does not look at {', '.join(unread)}.")
    is_open = body.add_generation_prompt is not False
    asked = {"tools": tools, "documents": documents, "is_open": is_open}
    return {**variables, **asked, "is_continued": bool(body.continue_final_message)}


def _unread(engine: Face, names: list[str], tools: Any, documents: Any) -> list[str]:
    if not names or engine.tokenizer is None or not engine.tokenizer.templates:
        return []
    return engine.tokenizer.unread_by_chat(names, None, tools, documents)


def stop_strings(body: TextBody, settings: ServerSettings) -> list[str]:
    """Return the stop strings.

    Raises:
        Refused: too many, or one that is empty or too long.
    """
    stops = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
    if len(stops) > settings.max_stops:
        raise _wrong("stop", f"stop holds {len(stops)} strings; at most {settings.max_stops} are taken.")
    if any(len(stop) > _LONGEST_STOP for stop in stops):
        raise _wrong("stop", f"A stop string has more than {_LONGEST_STOP} characters. Shorten it.")
    if any(not stop for stop in stops):
        raise _wrong("stop", "A stop string is empty. Give each at least one character.")
    return stops


def arguments(
    body: TextBody, engine: Face, settings: ServerSettings, scope: Scope, num_prompt: int, max_tokens: int | None
) -> dict[str, Any]:
    """Return the arguments of an `Ask` by name.

    Args:
        body: the request.
        engine: that is to write.
        settings: the server's limits.
        scope: of the request, for the header with warnings.
        num_prompt: tokens of the (longest) prompt.
        max_tokens: wanted; None = as many as there is room for.

    Raises:
        Refused: a value beyond a limit.
    """
    found = {name: value for name in _SAME if (value := getattr(body, name)) is not None}
    found |= {"sampling": "model", "stop": stop_strings(body, settings), "num_samples": _num_samples(body, settings)}
    if body.temperature is None and "temperature" not in engine.traits.defaults:
        found["temperature"] = 1.0  # as OpenAI's clients expect it
    found["seed"] = secrets.randbits(63) if body.seed is None else body.seed
    if body.top_k is not None:
        found["top_k"] = max(0, body.top_k)
    found["stop_tokens"] = body.stop_token_ids or []
    if len(found["stop_tokens"]) > settings.max_stops:
        raise _wrong("stop_token_ids", f"stop_token_ids holds more than {settings.max_stops} tokens.")
    for name, ids in (("stop_token_ids", found["stop_tokens"]), ("logit_bias", _biased(body))):
        if max(ids, default=0) >= engine.traits.vocab_size:
            raise _wrong(name, f"{name} holds an id outside the vocabulary. Ids end at {engine.traits.vocab_size - 1}.")
    if body.skip_special_tokens is False:
        found["keep_special"] = True
    if body.healed:
        found["is_healed"] = True
    if body.logit_bias:
        found["logit_bias"] = dict(zip(_biased(body), body.logit_bias.values(), strict=True))
    found |= _words(body, engine)
    found |= constraint(body.response_format, body.structured_outputs, body.model_extra or {})
    found |= _room(engine, settings, scope, num_prompt, max_tokens)
    if (body.min_tokens or 0) > found.get("max_tokens", body.min_tokens or 0):
        raise _wrong("min_tokens", f"min_tokens is {body.min_tokens}, above max_tokens.")
    if body.outpace is not None and body.outpace.law:
        found["law"] = [_law(text, settings) for text in body.outpace.law]
    if body.outpace is not None and body.outpace.search is not None:
        return _held(body.outpace, found, settings)
    chosen = method(body.outpace or Extra(), engine, settings)
    return found | chosen if load_method(chosen["method"]).draws else _searched(body, found, chosen)


def _searched(body: TextBody, found: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """Return what a search is asked for: nothing is drawn where the request says nothing, and n texts are its best."""
    if body.temperature is None:
        found |= {"temperature": 0.0, "sampling": "plain"}
    options = {**chosen["options"], "n_best": found["num_samples"]}
    if chosen["options"].get("n_best", options["n_best"]) != options["n_best"]:
        raise _wrong("outpace.options.n_best", "A request's n says how many texts come back. Leave n_best out.")
    return found | {"num_samples": 1, "method": chosen["method"], "options": options}


def _held(extra: Extra, found: dict[str, Any], settings: ServerSettings) -> dict[str, Any]:
    """Return what a search that holds several texts is asked for: a request's n is how many it returns.

    Raises:
        Refused: a reward that the server does not know, an option that is too large or names a file, or more texts than
            the search returns.
        ConfigError: there is no such search or method.
    """
    assert extra.search is not None
    kind, name, options = load_search(extra.search), extra.method or "autoregressive", dict(extra.options)
    fields = {field.name: field for part in (load_method(name), kind) for field in dataclasses.fields(part)}
    for key, value in extra.options.items():
        field, where = fields.get(key.replace("-", "_")), f"outpace.options.{key}"
        if field is None or not isinstance(field.default, Reward):
            _check_option(key, value, field, settings)
        elif not isinstance(value, str) or value not in settings.rewards:
            known = ", ".join(settings.rewards) or "none"
            raise _wrong(where, f"{where} is no reward of this server. It knows {known}.")
        else:
            options[key] = settings.rewards[value]
    if found["num_samples"] > 1 and "n_best" not in fields:
        raise _wrong("n", f"The search {extra.search!r} returns one text. Leave n out.")
    if "n_best" in fields:
        options["n_best"] = found["num_samples"]
    return found | {"num_samples": 1, "method": name, "search": extra.search, "options": options}


def _num_samples(body: TextBody, settings: ServerSettings) -> int:
    if (body.n or 1) > settings.max_samples:
        raise _wrong("n", f"n is {body.n}; at most {settings.max_samples} samples are written.")
    return body.n or 1


def _biased(body: TextBody) -> list[int]:
    """Return the tokens whose logits are biased."""
    biases = body.logit_bias or {}
    if len(biases) > _MOST_BIASES:
        raise _wrong("logit_bias", f"logit_bias names {len(biases)} tokens; at most {_MOST_BIASES} are taken.")
    if any(not (token.isascii() and token.isdigit()) for token in biases):
        raise _wrong("logit_bias", "A key of logit_bias is no token id. Give ids as decimal numbers.")
    return [int(token[:20]) for token in biases]


def _words(body: TextBody, engine: Face) -> dict[str, Any]:
    words = [word for word in body.bad_words or () if word]
    if len(words) > _MOST_WORDS or any(len(word) > _LONGEST_STOP for word in words):
        raise _wrong("bad_words", f"At most {_MOST_WORDS} words of {_LONGEST_STOP} characters are taken.")
    if words and engine.tokenizer is None:
        raise _wrong("bad_words", "The model has no tokenizer. Use logit_bias.")
    spelled = [
        engine.tokenizer.encode(text, False) for word in words for text in (word, f" {word}") if engine.tokenizer
    ]
    return {"bad_words": spelled} if spelled else {}


def _room(engine: Face, settings: ServerSettings, scope: Scope, num_prompt: int, wanted: int | None) -> dict[str, Any]:
    """Return how many tokens may be written: no more than the context holds, which the header tells."""
    traits, most = engine.traits, settings.max_output
    if settings.max_prompt and num_prompt > settings.max_prompt:
        message = f"The prompt has {num_prompt} tokens, but this server takes {settings.max_prompt}. Shorten it."
        raise Refused(400, message, param="prompt", code="context_length_exceeded")
    room = traits.context - (0 if traits.is_encoder_decoder else num_prompt)
    if wanted is None:
        if traits.is_canvas or "max_tokens" in traits.defaults:
            return {}
        return {"max_tokens": max(1, min(room, most or room))}
    if most and wanted > most:
        raise _wrong("max_tokens", f"max_tokens is {wanted}; at most {most} tokens are written.")
    if 0 < room < wanted:
        warn(scope, f"max_tokens was cut to {room}, which is what there is room for.")
    return {"max_tokens": max(1, min(wanted, room))}


def method(extra: Extra, engine: Face, settings: ServerSettings) -> dict[str, Any]:
    """Return the method and its options that a request, or the server, asks for.

    Raises:
        Refused: a draft budget that the method has no setting for, or an option that names a file or is too large.
        ConfigError: there is no such method.
    """
    plain = engine.traits.plain_method
    if extra.draft == 0:
        if extra.method not in (None, plain, "autoregressive") or extra.options:
            raise _wrong("outpace.draft", "outpace.draft is 0 beside a method. Leave one of them out.")
        return {"method": extra.method or plain}
    name = extra.method
    options = dict(extra.options)
    if name is None:
        name = settings.method
        if name == "auto" and plain != "autoregressive":  # it drafts for models that write from left to right
            name = plain
        options = {**settings.options, **options} if name == settings.method else options
    fields = {field.name: field for field in dataclasses.fields(load_method(name))}
    for key, value in extra.options.items():
        _check_option(key, value, fields.get(key.replace("-", "_")), settings)
    if extra.draft is not None:
        budget = next((key for key in ("budget", "draft_len", "nodes") if key in fields), None)
        if budget is None:
            message = f"The method {name!r} has no budget of drafts. Leave outpace.draft out, or name another method."
            raise _wrong("outpace.draft", message)
        options[budget] = extra.draft
    return {"method": name, "options": options}


def _law(text: str, settings: ServerSettings) -> str:
    """Return a law as it is spelled; under a name of the server's, that law with what the request sets beside it.

    Raises:
        Refused: the request names a file.
        ConfigError: there is no such law, or it has no such setting.
    """
    name, asked = read_spelled(text)
    kind, options = read_spelled(settings.laws.get(name, name))
    for key in load_law(kind).files:
        if key in asked or key.replace("_", "-") in asked:
            raise _wrong("outpace.law", f"{key} of a law may not be named by a request. Leave it out.")
    options |= asked
    load_law(kind).from_settings(options)  # a mistake there is told at once
    return f"{kind}:{','.join(f'{key}={value}' for key, value in options.items())}"


def _check_option(key: str, value: Any, field: Any, settings: ServerSettings) -> None:
    """Refuse options that would have the server open a file by a client's wish, or draft without bounds."""
    if field is None or value == settings.options.get(key):
        return  # an unknown one is refused by the method, with the nearest name
    where, default, allowed = f"outpace.options.{key}", field.default, field.metadata.get("range")
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    if is_number and isinstance(value, str):
        raise _wrong(where, f"{where} is text, where a number belongs.")
    if is_number and isinstance(value, int | float) and value > max(default, _MOST_DRAFTED):
        raise _wrong(where, f"{where} is {value}; at most {max(default, _MOST_DRAFTED)} is taken.")
    if not is_number and not isinstance(default, bool):
        is_named = isinstance(default, str) and bool(getattr(allowed, "among", ()) or field.name in _FREE_OPTIONS)
        is_shipped = isinstance(value, str) and value in (*zoo.names(), "auto", "", default)
        if not (is_named or is_shipped):
            raise _wrong(where, f"{where} may only name a model that ships with Outpace, or is set by the server.")


def check_top(name: str, value: int | None) -> None:
    """Refuse more of the likeliest tokens than are told.

    Raises:
        Refused: 400, with the field's name.
    """
    if (value or 0) > _MOST_TOP:
        raise _wrong(name, f"{name} is {value}; at most {_MOST_TOP} are told.")


def _wrong(param: str, message: str) -> Refused:
    return Refused(400, message, param=param, code="invalid_value")
