"""An index of one row's n-grams that finds the longest, most recent match in constant time per token."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["NgramIndex"]


class NgramIndex:
    """Where each n-gram of a growing text last ended.

    Args:
        smallest: shortest n-gram that counts as a match.
        largest: longest n-gram tried.
        before: what stands before the text and may be matched too, such as a source: `extend` and `lookup` take the
            two as one (`whole`).
    """

    def __init__(self, smallest: int, largest: int, before: Sequence[int] = ()) -> None:
        self.smallest, self.largest, self.before = smallest, largest, list(before)
        self._last: dict[tuple[int, ...], int] = {}
        self._size = 0

    def whole(self, text: list[int]) -> list[int]:
        """Return the text behind what stands before it."""
        return self.before + text if self.before else text

    def extend(self, text: list[int]) -> None:
        """Index the part of `text` that is new, but for n-grams that end at its last token (they are the query)."""
        for end in range(max(self._size, 1), len(text)):
            for size in range(self.smallest, min(self.largest, end) + 1):
                self._last[tuple(text[end - size : end])] = end
        self._size = max(self._size, len(text))

    def lookup(self, text: list[int]) -> int | None:
        """Return where the longest, most recent earlier match of the text's end continues, or None."""
        for size in range(min(self.largest, len(text)), self.smallest - 1, -1):
            at = self._last.get(tuple(text[len(text) - size :]))
            if at is not None:
                return at
        return None

    def follow(self, text: list[int], most: int) -> tuple[list[int], int]:
        """Take in a text; return up to `most` tokens that followed its longest, most recent match, and its length."""
        text = self.whole(text)
        self.extend(text)
        at = self.lookup(text)
        if at is None:
            return [], 0
        length = self.smallest
        while length < self.largest and length < at and text[at - length - 1] == text[-length - 1]:
            length += 1
        return text[at : at + most], length

    def copy(self) -> NgramIndex:
        """Return an independent copy (a forked row)."""
        other = NgramIndex(self.smallest, self.largest, self.before)
        other._last, other._size = dict(self._last), self._size
        return other
