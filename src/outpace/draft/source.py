"""What an encoder-decoder reads, as its decoder would spell it: what may come again in what it writes."""

from __future__ import annotations

from collections.abc import Sequence

from outpace.text.tokenizer import Tokenizer
from outpace.types import Context

__all__ = ["originals", "passed_tokens", "spelled"]


def originals(context: Context) -> list[list[int]]:
    """Return the joining rows' sources in the decoder's ids, from the first token of their texts on; [] = no encoder.

    The end of a source stays, as the decoder spells its own.
    """
    if not context.target.capabilities.is_encoder_decoder:
        return [[] for _ in context.texts]
    ours = context.tokenizers.get("target")
    theirs = context.tokenizers.get("source", ours)
    return [spelled(source, theirs, ours) for source in context.sources]


def spelled(source: Sequence[int], theirs: Tokenizer | None, ours: Tokenizer | None) -> list[int]:
    """Return a source in the ids of another tokenizer, without the special tokens that it begins with.

    Args:
        source: ids of `theirs`.
        theirs: the source's tokenizer; None = nothing is known of special tokens.
        ours: the tokenizer of what is written; the same one = the ids are too.
    """
    if theirs is None or ours is None:
        return list(source)
    special = set(theirs.special_ids.values())
    first = next((at for at, token in enumerate(source) if token not in special), len(source))
    if theirs is ours:
        return list(source[first:])
    ended = len(source) > first and source[-1] == theirs.eos_id and ours.eos_id is not None
    words = ours.encode(theirs.decode(source[first:]), is_special=False)
    return [*words, ours.eos_id] if ended and ours.eos_id is not None else words


def passed_tokens(context: Context) -> frozenset[int]:
    """Return the decoder's special tokens that stand before a text, not in it: all but those that end it."""
    tokenizer = context.tokenizers.get("target")
    known = set() if tokenizer is None else {*tokenizer.special_ids.values()} - {tokenizer.eos_id}
    started = context.target.start_token
    return frozenset(known if started is None else known | {started})
