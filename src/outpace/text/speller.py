"""How one vocabulary spells text: what bytes ids write, and what ids a tokenizer writes for bytes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from outpace.errors import CapabilityError

if TYPE_CHECKING:
    from outpace.text.tokenizer import Tokenizer

__all__ = ["Speller", "speller"]


class Speller:
    """How one model's vocabulary spells text.

    Args:
        tokenizer: the model's tokenizer.
        size: ids that the model knows; what the tokenizer has beyond them is not used.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        spelled = tokenizer.spellings[:size]
        self.tokenizer, self.size = tokenizer, size
        self.bytes: list[bytes | None] = [*spelled, *[None] * (size - len(spelled))]
        # Of two ids spelled alike the last: sentencepiece has its single bytes first.
        self.ids = {text: index for index, text in enumerate(self.bytes) if text}
        self.special = {name: index for name, index in tokenizer.special_ids.items() if index < size}
        self._longest = max(map(len, self.ids), default=0)
        # What a tokenizer puts before a text is what "a" gets, provided that the rest is spelled as without it.
        framed, bare = tokenizer.encode("a"), tokenizer.encode("a", is_special=False)
        before = framed[: len(framed) - len(bare)]
        self.opening = [index for index in before if index < size] if [*before, *bare] == framed else []
        self.adds_space = self.join(self.encode("a")) == b" a"

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without what the tokenizer puts around it."""
        return [index for index in self.tokenizer.encode(text, is_special=False) if index < self.size]

    def canonical(self, text: bytes) -> list[int] | None:
        """Return the ids that the tokenizer itself writes for bytes, without what it puts around a text.

        Returns:
            None where the bytes are no text of whole characters, so that it cannot be asked.

        Raises:
            CapabilityError: the tokenizer rewrites the text, so that its ids write other bytes.
        """
        if not text:
            return []
        if self.adds_space and not text.startswith(b" "):
            return None
        try:
            ids = self.encode(text[self.adds_space :].decode())
        except UnicodeDecodeError:
            return None
        if self.join(ids) != text:
            raise CapabilityError(
                "The tokenizer rewrites this text, so that its tokens write other bytes.",
                "Leave exact bytes out, or write the text as the tokenizer does.",
            )
        return ids

    def join(self, ids: Sequence[int]) -> bytes:
        """Return the bytes that ids spell; special tokens spell none."""
        return b"".join(self.bytes[index] or b"" for index in ids)

    def starts(self, ids: Sequence[int], end: int) -> list[int]:
        """Return where each token begins if the last one ends at `end`."""
        found = [end] * len(ids)
        for at in range(len(ids) - 1, -1, -1):
            end -= len(self.bytes[ids[at]] or b"")
            found[at] = end
        return found

    def spell(self, text: bytes) -> list[int]:
        """Return ids that spell bytes, the longest token first; stops where no token fits."""
        found, at = [], 0
        while at < len(text):
            sizes = range(min(self._longest, len(text) - at), 0, -1)
            index = next((self.ids[text[at : at + size]] for size in sizes if text[at : at + size] in self.ids), None)
            if index is None:
                break
            found.append(index)
            at += len(self.bytes[index] or b"")
        return found


@functools.lru_cache(maxsize=8)
def speller(tokenizer: Tokenizer, size: int) -> Speller:
    """Return how a vocabulary spells, made once for each tokenizer in use."""
    return Speller(tokenizer, size)
