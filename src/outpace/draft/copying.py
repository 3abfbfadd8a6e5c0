"""Copying: a text that is expected to come again, perhaps with changes, and how far it has come.

Source: Sun et al. (2021), arXiv 2106.04970, and Ge et al. (2022), arXiv 2205.10350: after a change, copying begins
again where the end of what was written stands in the text that is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outpace.types import View

__all__ = ["Copies", "Copy"]


class Copy:
    """One text that is copied, and the place up to which it was.

    In step, each written token is the next one of the original. A token that is not ends that; from then on the longest
    ending of the new text that occurs in the original says where copying goes on, of several places the nearest one
    ahead. A single token is believed near the place alone, and never backwards. Where nothing is found, the tokens
    written since stand for as many of the original.

    Args:
        original: what is copied.
        largest: tokens of the longest ending that is looked up.
        near: how many tokens further on a single token is looked for.
        passed: tokens that say nothing of the place, such as the token of a language.
    """

    def __init__(
        self, original: Sequence[int], largest: int = 4, near: int = 2, passed: frozenset[int] = frozenset()
    ) -> None:
        self.original, self.largest, self.near, self._passed = list(original), largest, near, passed
        self.at = 0  # the token that comes next, while in step
        self.num_lost = 0  # tokens written since
        self._written: list[int] = []  # the last ones, `largest` at most
        self._ends: dict[tuple[int, ...], list[int]] = {}  # where each n-gram of the original ends, ascending
        for end in range(1, len(self.original) + 1):
            for size in range(1, min(largest, end) + 1):
                self._ends.setdefault(tuple(self.original[end - size : end]), []).append(end)

    def write(self, tokens: Sequence[int]) -> None:
        """Take in tokens that were written."""
        for token in tokens:
            if token in self._passed:
                continue
            self._written = [*self._written[1 - self.largest :], token] if self.largest > 1 else [token]
            place = self.at + 1 if self._is_next(token) else self._find()
            if place is not None:
                self.at, self.num_lost = place, 0
            elif self.at:  # before the first copied token, whatever is written stands before the original
                self.num_lost += 1

    def ahead(self, most: int) -> list[int]:
        """Return the next tokens of the original, `most` at most."""
        start = self.at + self.num_lost
        return self.original[start : start + max(0, most)]

    def copy(self) -> Copy:
        """Return an independent copy (a forked row)."""
        other = Copy.__new__(Copy)
        vars(other).update(vars(self))
        return other

    def _is_next(self, token: int) -> bool:
        return not self.num_lost and self.original[self.at : self.at + 1] == [token]

    def _find(self) -> int | None:
        """Return where the original goes on behind the longest known ending of what was written."""
        for size in range(len(self._written), 0, -1):
            ends = self._ends.get(tuple(self._written[-size:]), ())
            ahead = next((end for end in ends if end > self.at), None)
            if size == 1:
                return ahead if ahead is not None and ahead <= self.at + self.num_lost + self.near else None
            if ends:
                return ahead if ahead is not None else ends[-1]
        return None


@dataclass
class Copies:
    """What each row of a run copies.

    Attributes:
        copies: per row; None = nothing to copy is known yet.
        seen: tokens of each row's text that were taken in.
    """

    copies: list[Copy | None]
    seen: list[int]

    def reach(self, view: View, most: int | Sequence[int]) -> list[int]:
        """Return how many tokens ahead each row may draft."""
        limits = [most] * len(view.texts) if isinstance(most, int) else most
        return [max(0, min(limit, room - 1)) for limit, room in zip(limits, view.room, strict=True)]

    def drafts(self, view: View, reach: Sequence[int]) -> list[list[int]]:
        """Take in what was written, and return what each row's original goes on with."""
        for row, (copy, text) in enumerate(zip(self.copies, view.texts, strict=True)):
            if copy is not None:
                copy.write(text[self.seen[row] :])
                self.seen[row] = len(text)
        return [[] if copy is None else copy.ahead(most) for copy, most in zip(self.copies, reach, strict=True)]
