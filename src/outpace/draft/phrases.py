"""A pool of phrases: what may follow each token, a few of one length, the one not seen for longest forgotten first."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["PhrasePool"]

Phrase = tuple[int, ...]


class PhrasePool:
    """Phrases by the token before them.

    Args:
        size: tokens per phrase.
        limit: phrases kept per token.
    """

    def __init__(self, size: int, limit: int) -> None:
        self.size, self.limit = size, limit
        self._phrases: dict[int, dict[Phrase, None]] = {}  # oldest first
        self._num_read = 0

    def add(self, key: int, phrase: Phrase) -> None:
        """Note that `phrase` was seen after `key`: it is now the newest of its kind."""
        known = self._phrases.setdefault(key, {})
        known.pop(phrase, None)
        known[phrase] = None
        if len(known) > self.limit:
            del known[next(iter(known))]

    def add_all(self, tokens: Sequence[int], start: int = 0) -> None:
        """Note every whole phrase of a run of tokens whose key lies at `start` or later."""
        for at in range(start, len(tokens) - self.size):
            self.add(tokens[at], tuple(tokens[at + 1 : at + 1 + self.size]))

    def read(self, text: Sequence[int]) -> None:
        """Note the phrases of the part of a growing text that is new."""
        self.add_all(text, self._num_read)
        self._num_read = max(self._num_read, len(text) - self.size)

    def find(self, key: int, most: int) -> list[Phrase]:
        """Return up to `most` phrases after `key`, the newest first."""
        return list(reversed(self._phrases.get(key, {})))[:most]

    def copy(self) -> PhrasePool:
        """Return an independent copy (a forked row)."""
        other = PhrasePool(self.size, self.limit)
        other._phrases = {key: dict(known) for key, known in self._phrases.items()}
        other._num_read = self._num_read
        return other
