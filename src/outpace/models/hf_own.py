"""A transformers model's own cache, one per row: for recurrent states and layers that share theirs.

Such a cache has no slots that we could write to or drop. Tokens are noted in a book, and what the model has not read of
it yet goes through it with the next forward that asks for logits. Where drafts may be rejected, the state before them
is copied; where it cannot be, a row that is taken back reads its text again from the start.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from outpace.cache import Cache
from outpace.types import Counter

__all__ = ["OwnCache", "OwnState"]


@dataclass
class OwnState:
    """One row's cache as the model made it.

    Attributes:
        past: the cache; None = nothing was read yet.
        length: tokens read.
        saved: an earlier state that a rejection goes back to, or None.
        is_shared: another row or an overlay reads it too, so that it is copied before it is written.
    """

    past: Any = None
    length: int = 0
    saved: OwnState | None = None
    is_shared: bool = False

    def save(self) -> None:
        """Keep a copy of what was read so far."""
        self.saved = OwnState(copy.deepcopy(self.past), self.length)

    def unshare(self) -> None:
        """Make the state this row's alone."""
        if self.is_shared:
            self.past, self.is_shared = copy.deepcopy(self.past), False


class OwnCache(Cache):
    """A book of tokens [rows, capacity], and each row's state.

    Attributes:
        states: one per row; tokens beyond `states[b].length` are still to be read.
    """

    def __init__(
        self, book: Tensor, counter: Counter | None, lengths: list[int], states: Sequence[OwnState] = ()
    ) -> None:
        super().__init__([book], 1, counter, lengths)
        self.states = list(states) or [OwnState() for _ in lengths]

    def keep(self, staged: Sequence[Sequence[int]]) -> None:
        """Make staged tokens valid; a row that loses some goes back to before them."""
        for row, offsets in enumerate(staged):
            if any(offset != place for place, offset in enumerate(offsets)):  # what was read has another order
                self.states[row] = OwnState()
        super().keep(staged)
        self._go_back()

    def retain(self, slots: Sequence[Sequence[int]]) -> None:
        """Make the given slots valid; what was read is read again."""
        super().retain(slots)
        self.states = [OwnState() for _ in self.lengths]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget tokens at and beyond `lengths[b]`."""
        super().truncate(lengths)
        self._go_back()

    def fork(self, counter: Counter | None = None) -> OwnCache:
        """Return an overlay that reads the same states and writes copies of them."""
        book = self.buffers[0]
        return OwnCache(book, counter or Counter(), list(self.lengths), [self._shared(row) for row in self._rows()])

    def rows(self, index: Sequence[int]) -> OwnCache:
        """Return a copy with the given rows, in that order (rows may repeat)."""
        picked = super().rows(index)
        return OwnCache(picked.buffers[0], self.counter, picked.lengths, [self._shared(row) for row in index])

    def follow(self, source: Sequence[int]) -> None:
        """Let row i go on from row `source[i]`, in place, its state included."""
        vars(self).update(vars(self.rows(source)))

    def leave(self, stay: Sequence[int]) -> None:
        """Keep the given rows, in that order, in place."""
        super().leave(stay)
        self.states = [self.states[row] for row in stay]

    def _derive(
        self, buffers: Sequence[Tensor], index: Sequence[int], extra: Sequence[Tensor], counter: Counter | None = None
    ) -> OwnCache:
        del extra
        return OwnCache(buffers[0], counter or self.counter, [self.lengths[i] for i in index])

    def lend(self, buffers: Sequence[Tensor], index: Sequence[int]) -> OwnCache:
        """Return a cache of some rows' tokens, and their states."""
        return OwnCache(buffers[0], self.counter, [self.lengths[i] for i in index], [self.states[i] for i in index])

    def take_back(self, lent: Cache, index: Sequence[int]) -> None:
        """Take over the states that a forward made."""
        assert isinstance(lent, OwnCache)  # from `lend`
        for row, state in zip(index, lent.states, strict=True):
            self.states[row] = state

    def _adopt(self, parts: Sequence[Cache]) -> None:
        self.states = [state for part in parts if isinstance(part, OwnCache) for state in part.states]

    def _rows(self) -> range:
        return range(len(self.lengths))

    def _shared(self, row: int) -> OwnState:
        state = self.states[row]
        state.is_shared = True
        return OwnState(state.past, state.length, None, is_shared=True)

    def _go_back(self) -> None:
        for row, (state, length) in enumerate(zip(self.states, self.lengths, strict=True)):
            if state.length > length:
                saved = state.saved
                self.states[row] = saved if saved is not None and saved.length <= length else OwnState()
