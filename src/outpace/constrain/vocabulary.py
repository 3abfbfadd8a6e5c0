"""The bytes that each token writes, read from the tokenizer itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from outpace.errors import ConfigError

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["token_bytes", "vocabulary"]

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece spells a space


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
    settings = json.loads(tokenizer.to_json())
    kinds = list(_decoders(settings.get("decoder")))
    names = {str(kind["type"]) for kind in kinds}
    is_spaced = "Metaspace" in names or any(
        kind["type"] == "Replace" and kind.get("pattern") == {"String": _SPACE} and kind.get("content") == " "
        for kind in kinds
    )
    if "ByteLevel" not in names and not is_spaced:
        raise ConfigError(
            "Constraints need a byte-level or sentencepiece tokenizer, and this model's is neither.",
            "Use a model with such a tokenizer, or leave the constraint out.",
        )
    size = tokenizer.vocab_size if vocab_size is None else vocab_size
    special = [int(token["id"]) for token in settings["added_tokens"] if token["special"] and token["id"] < size]
    spelled = [tokenizer.token(index) for index in range(size)]
    if "ByteLevel" in names:
        table = _byte_table()
        return [_byte_level(text, table) for text in spelled], special
    return [_sentencepiece(text, "ByteFallback" in names) for text in spelled], special


def _decoders(settings: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield the decoder and, of a sequence, its parts."""
    if settings is None:
        return
    if settings["type"] == "Sequence":
        for part in settings["decoders"]:
            yield from _decoders(part)
    else:
        yield settings


def _byte_table() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for.

    Printable bytes stand for themselves; the others, in order, are written with the letters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _byte_level(text: str, table: Mapping[str, int]) -> bytes:
    if all(letter in table for letter in text):
        return bytes(table[letter] for letter in text)
    return text.encode()  # an added token, spelled plainly


def _sentencepiece(text: str, has_bytes: bool) -> bytes:
    if has_bytes and re.fullmatch("<0x[0-9A-Fa-f]{2}>", text):
        return bytes.fromhex(text[3:5])
    return text.replace(_SPACE, " ").encode()
