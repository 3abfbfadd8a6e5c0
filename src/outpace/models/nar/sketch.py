"""Texts that grow from given tokens: which tokens stand there, which were given, and where nothing may come between.

A source says what is given, in order: words (`dog park ball`), or phrases between bars (`ice cream|dog`; one alone:
`ice cream|`). What stands before a double bar is only read: `How are you?||fine thanks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["BAR", "DOUBLE_BAR", "SPECIAL", "Sketch", "phrases_of"]

BAR, DOUBLE_BAR = 3, 4  # ids of the two marks; 0 to 2 are end, mask and start
SPECIAL = 5  # ids below it are never written


@dataclass(slots=True)
class Sketch:
    """A text that is not done.

    Attributes:
        tokens: what stands there.
        is_given: per token, whether the caller gave it: it stays, whatever a network says.
        is_glued: per token, whether nothing may come between it and the token before it.
    """

    tokens: list[int] = field(default_factory=list)
    is_given: list[bool] = field(default_factory=list)
    is_glued: list[bool] = field(default_factory=list)

    @classmethod
    def of(cls, phrases: Sequence[Sequence[int]]) -> Sketch:
        """Return a sketch of given phrases."""
        glued = [at > 0 for phrase in phrases for at in range(len(phrase))]
        return cls([token for phrase in phrases for token in phrase], [True] * len(glued), glued)

    @property
    def is_open(self) -> list[bool]:
        """Per slot whether something may be inserted: before each token, and behind all."""
        return [*(not glued for glued in self.is_glued), True]

    def insert(self, slot: int, tokens: Sequence[int]) -> None:
        """Put tokens into an open slot."""
        assert self.is_open[slot]
        self.tokens[slot:slot] = tokens
        self.is_given[slot:slot] = self.is_glued[slot:slot] = [False] * len(tokens)

    def delete(self, at: int) -> None:
        """Take a token out that was not given."""
        assert not self.is_given[at]
        del self.tokens[at], self.is_given[at], self.is_glued[at]


def phrases_of(source: Sequence[int], starts: Sequence[bool]) -> tuple[list[list[int]], bool]:
    """Return the phrases that a source gives, and whether it has a double bar.

    Args:
        source: its tokens.
        starts: per token of the vocabulary, whether it begins a word.
    """
    given = list(source)
    if has_bar := DOUBLE_BAR in given:  # the last one counts
        given = given[len(given) - given[::-1].index(DOUBLE_BAR) :]
    parts = [list[int]()]
    for token in given:
        if token == BAR or (BAR not in given and token >= SPECIAL and starts[token]):
            parts.append([])
        if token >= SPECIAL:
            parts[-1].append(token)
    return [part for part in parts if part], has_bar
