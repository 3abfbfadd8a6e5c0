"""What rounding costs: bits per byte of a held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable

from outpace.api.engine import LanguageModel
from outpace.api.scoring import score_tokens
from outpace.errors import ConfigError, ModelError

__all__ = ["bits_per_byte"]

_WINDOW = 512  # tokens that are scored together, each given those before it


def bits_per_byte(lm: LanguageModel, text: str, tell: Callable[[int, int], None] = lambda done, total: None) -> float:
    """Return the bits that a causal model needs per UTF-8 byte of a text, read in pieces of 512 tokens.

    Args:
        lm: the model, with a tokenizer.
        text: long enough for some tokens.
        tell: called with the tokens read so far and all of them.

    Raises:
        ModelError: the model has no tokenizer.
        ConfigError: the text is too short.
    """
    if lm.tokenizer is None:
        raise ModelError("Bits per byte need a tokenizer, and the model has none.", "Use --no-quality.")
    framed, ids = lm.tokenizer.encode(text), lm.tokenizer.encode(text, is_special=False)
    head = framed[:1] if framed[:1] == [lm.tokenizer.bos_id] != ids[:1] else []
    window = min(_WINDOW, lm.target.capabilities.max_positions) - len(head)
    bits = num_bytes = 0.0
    for at in range(0, len(ids), window):
        tell(at, len(ids))
        scored = score_tokens(lm.target, head + ids[at : at + window], lm.name, lm.tokenizer)
        bits -= scored.log_prob / math.log(2)
        num_bytes += scored.num_bytes
    if not num_bytes:
        raise ConfigError("The text is too short to tell anything.", "Give a longer one, of 10 kB or more.")
    return bits / num_bytes
