"""A prompt as callers bring it: text, ids, arrays of ids, what a transformers tokenizer returns, or a list of these."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from outpace.arguments import ids
from outpace.errors import ConfigError
from outpace.text.chat import Message
from outpace.types import Capabilities

__all__ = ["Prompt", "check_tokens", "read_prompts"]

Prompt = str | Sequence[int] | Sequence[Message]


def read_prompts(
    prompt: Any, encode: Callable[[str], list[int]], offered: Capabilities
) -> tuple[list[list[int]], bool]:
    """Return the ids of each prompt, and whether there was only one that is no list of them.

    Args:
        prompt: what the caller brought; conversations are ids already.
        encode: text to ids.
        offered: of the model that reads them.

    Raises:
        ConfigError: a prompt of another kind, empty, longer than the context, or with a token that does not exist.
    """
    prompt = _plain(prompt)
    is_single = isinstance(prompt, str) or not hasattr(prompt[0], "__len__") or getattr(prompt[0], "ndim", 1) == 0
    many: Any = [prompt] if is_single else prompt
    found = [encode(item) if isinstance(item, str) else ids("the prompt", item) for item in many]
    for tokens in found:
        if not tokens:
            raise ConfigError("The prompt is empty.", "Give at least one character.")
        check_tokens("The prompt holds a token", tokens, offered.source_vocab or offered.vocab_size)
        if not offered.is_encoder_decoder and len(tokens) >= offered.max_positions:
            raise ConfigError(
                f"The prompt has {len(tokens)} tokens, but the model's context is {offered.max_positions}.",
                "Shorten the prompt.",
            )
    return found, is_single


def check_tokens(what: str, tokens: Sequence[int], vocab_size: int) -> None:
    """Refuse ids that do not exist.

    Raises:
        ConfigError: one lies outside 0 to `vocab_size` - 1; the sentence begins with `what`.
    """
    if tokens and not (min(tokens) >= 0 and max(tokens) < vocab_size):
        raise ConfigError(f"{what} outside the vocabulary.", f"Ids go from 0 to {vocab_size - 1}.")


def _plain(prompt: Any) -> Any:
    """Return text or a list that is not empty; an array or tensor as lists, without the padding that a mask names."""
    if isinstance(prompt, Mapping) or hasattr(prompt, "input_ids"):
        prompt = _without_padding(prompt)
    if hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, (bytes, bytearray)):
        raise ConfigError("The prompt is bytes.", "Decode it first: prompt.decode().")
    if isinstance(prompt, os.PathLike):
        raise ConfigError("The prompt is a path.", "Read the file first: path.read_text().")
    if not isinstance(prompt, Sequence):
        raise ConfigError(f"The prompt is of type {type(prompt).__name__}.", "Give text, token ids, or a list of them.")
    if any(isinstance(item, Mapping) and "role" in item for item in prompt):
        raise ConfigError("The prompt is chat messages.", "Render them first: lm.tokenizer.encode_chat(messages).")
    if len(prompt) == 0:
        raise ConfigError("The prompt is empty.", "Give at least one character.")
    return prompt


def _without_padding(encoded: Any) -> Any:
    """Return the ids of a transformers encoding, without positions that its mask leaves out."""
    try:
        tokens, mask = encoded["input_ids"], encoded.get("attention_mask")
    except (AttributeError, KeyError, TypeError):
        raise ConfigError(
            "The prompt is a mapping without input_ids.", "Give text, token ids, or what a tokenizer returns."
        ) from None
    tokens, mask = (part.tolist() if hasattr(part, "tolist") else part for part in (tokens, mask))
    if mask is None or not isinstance(tokens, list) or not tokens:
        return tokens
    if not isinstance(tokens[0], list):
        return [token for token, is_seen in zip(tokens, mask, strict=False) if is_seen]
    rows = zip(tokens, mask, strict=False)
    return [[token for token, is_seen in zip(row, seen, strict=False) if is_seen] for row, seen in rows]
