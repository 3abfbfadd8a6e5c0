"""A table of which token followed which few tokens last: it guesses, in microseconds, what a model will say."""

from __future__ import annotations

from collections.abc import Sequence

from outpace.draft.memory import Memory
from outpace.errors import ConfigError

__all__ = ["BackoffTable"]

_MOST_ENTRIES = 500_000  # about 60 MB


class BackoffTable(Memory):
    """What came last after each context of `order` tokens and of fewer; the longest known context answers.

    Shared by all rows of a run, and by runs that are given it as memory: what it says changes how fast drafts come,
    never which they are.

    Args:
        order: tokens of the longest context.

    Raises:
        ConfigError: the order is below 1.
    """

    def __init__(self, order: int = 3) -> None:
        super().__init__()
        if order < 1:
            raise ConfigError(f"order is {order}.", "order must be 1 or more.")
        self.order = order
        self._after: dict[tuple[int, ...], int] = {}

    def learn(self, text: Sequence[int], begin: int) -> None:
        """Note the tokens of a text from position `begin` on, each after the tokens before it."""
        if len(self._after) > _MOST_ENTRIES:
            self._after.clear()
        for at in range(max(1, begin), len(text)):
            for size in range(1, min(self.order, at) + 1):
                self._after[tuple(text[at - size : at])] = text[at]

    def guess(self, text: Sequence[int], most: int) -> list[int]:
        """Return up to `most` tokens that may follow a text; fewer where no context is known."""
        last = list(text[-self.order :])
        found: list[int] = []
        while len(found) < most:
            sizes = range(min(self.order, len(last)), 0, -1)
            token = next((self._after[key] for size in sizes if (key := tuple(last[-size:])) in self._after), None)
            if token is None:
                break
            found.append(token)
            last = [*last, token][-self.order :]
        return found

    def rows(self, index: Sequence[int]) -> BackoffTable:
        """Return itself: the rows of a run share it."""
        del index
        return self

    def join(self, tables: Sequence[BackoffTable]) -> BackoffTable:
        """Take in what other tables know that this one does not, and return itself."""
        for table in tables:
            if table is not self:
                self._after = table._after | self._after
        return self
