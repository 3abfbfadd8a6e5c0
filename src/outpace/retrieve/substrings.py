"""A constraint: whatever is written occurs, token for token, in a collection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from outpace.retrieve.fm_index import FmIndex, Rows

__all__ = ["SubstringState", "Substrings"]


@dataclass(frozen=True, slots=True, eq=False)
class Substrings:
    """All n-grams of a collection, as a constraint (`outpace.constrain.protocol`).

    Attributes:
        index: of the collection, in the model's tokens.
        vocab_size: the model's V, which may be padded beyond the index' vocabulary.
    """

    index: FmIndex
    vocab_size: int

    def start(self) -> SubstringState:
        """Return the state of an empty text."""
        return SubstringState(self, [], [self.index.rows])


class SubstringState:
    """The rows of what is written, and of its beginnings; see `ConstraintState`."""

    def __init__(self, rules: Substrings, tokens: list[int], rows: list[Rows]) -> None:
        self.tokens, self._rules, self._rows = tokens, rules, rows
        self._allowed: Tensor | None = None

    @property
    def rows(self) -> Rows:
        """The rows of what is written."""
        return self._rows[-1]

    @property
    def is_complete(self) -> bool:
        """Whether the text may end here: wherever it holds a token."""
        return bool(self.tokens)

    @property
    def is_final(self) -> bool:
        """Whether nothing may follow: it occurs only at the ends of texts."""
        return self.is_complete and not bool(self.allowed().any())

    def allowed(self) -> Tensor:
        """Return the mask, [V] bool."""
        if self._allowed is None:
            found = torch.zeros(self._rules.vocab_size, dtype=torch.bool)
            following = self._rules.index.following(self.rows)
            size = min(len(following), len(found))
            found[:size] = torch.from_numpy(following[:size])
            self._allowed = found
        return self._allowed

    def push(self, token: int) -> bool:
        """Append a token, unless the collection does not hold what comes of it."""
        low, high = self._rules.index.extend(self.rows, token)
        if low == high:
            return False
        self.tokens.append(token)
        self._rows.append((low, high))
        self._allowed = None
        return True

    def back(self, count: int) -> None:
        """Take the last tokens back."""
        if count > 0:
            del self.tokens[-count:], self._rows[-count:]
            self._allowed = None

    def fork(self) -> SubstringState:
        """Return an independent copy."""
        return SubstringState(self._rules, list(self.tokens), list(self._rows))
