"""A prompt as callers bring it: text, ids, arrays of ids, what a transformers tokenizer returns, or a list of these."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from outpace.errors import ConfigError

__all__ = ["plain_prompt"]


def plain_prompt(prompt: Any) -> Any:
    """Return text or a list that is not empty; an array or tensor as lists, without the padding that a mask names.

    Raises:
        ConfigError: it is something else.
    """
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
