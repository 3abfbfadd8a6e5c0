"""The bytes that each token writes, read from the tokenizer itself."""

from __future__ import annotations

from outpace.errors import ConfigError
from outpace.text.tokenizer import Tokenizer, spell

__all__ = ["token_bytes", "vocabulary"]


def token_bytes(tokenizer: Tokenizer, vocab_size: int | None = None) -> list[bytes]:
    """Return what each id adds to a text; arguments and errors as for `vocabulary`."""
    return vocabulary(tokenizer, vocab_size)[0]


def vocabulary(tokenizer: Tokenizer, vocab_size: int | None = None) -> tuple[list[bytes], list[int]]:
    """Return what each id adds to a text (nothing for unknown ids), and the ids of special tokens, which are no text.

    Args:
        tokenizer: byte-level, or of the sentencepiece kind.
        vocab_size: the model's, which may be padded.

    Raises:
        ConfigError: the tokenizer joins its tokens in another way, so that a token's bytes depend on its neighbours.
    """
    kinds = tokenizer.decoder_kinds - {"?"}  # what else a decoder does is no matter of single tokens
    if not kinds & {"ByteLevel", "Metaspace", "Replace"}:
        raise ConfigError(
            "Constraints need a byte-level or sentencepiece tokenizer, and this model's is neither.",
            "Use a model with such a tokenizer, or leave the constraint out.",
        )
    size = tokenizer.vocab_size if vocab_size is None else vocab_size
    special = sorted(index for index in tokenizer.special_ids.values() if index < size)
    words = [tokenizer.token(index) for index in range(size)]
    return [spell(word, kinds) or word.encode() for word in words], special
