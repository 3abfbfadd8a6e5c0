"""What an encoder-decoder reads, as its decoder would spell it: what may come again in what it writes."""

from __future__ import annotations

from outpace.types import Context

__all__ = ["originals", "passed_tokens"]


def originals(context: Context) -> list[list[int]]:
    """Return the joining rows' sources in the decoder's ids, without the special tokens before them; [] = no encoder.

    The end of a source stays, as the decoder spells its own. Where no tokenizer is known, nothing is left out.
    """
    if not context.target.capabilities.is_encoder_decoder:
        return [[] for _ in context.texts]
    tokenizer = context.tokenizers.get("target")
    return [list(source) if tokenizer is None else tokenizer.rewritten(source) for source in context.sources]


def passed_tokens(context: Context) -> frozenset[int]:
    """Return the decoder's special tokens that stand before a text, not in it: all but those that end it."""
    tokenizer = context.tokenizers.get("target")
    known = set() if tokenizer is None else {*tokenizer.special_ids.values()} - {tokenizer.eos_id}
    started = context.target.start_token
    return frozenset(known if started is None else known | {started})
