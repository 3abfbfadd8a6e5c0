"""One row's text and its suffix counts, and what rows of earlier calls wrote."""

from __future__ import annotations

from collections.abc import Sequence

from outpace.draft.memory import Memory
from outpace.draft.suffix import Draft, Place, SuffixCounts, SuffixRule, Tip
from outpace.errors import ConfigError

__all__ = ["SuffixHistory", "SuffixMemory"]


class SuffixMemory(Memory):
    """Outputs of earlier calls, for the method `suffix`.

    Old texts are forgotten half a memory at a time, so that at most about `max_tokens` are kept.

    Args:
        max_tokens: tokens kept, at about 500 bytes each.
        depth: longest match.

    Raises:
        ConfigError: either is too small.
    """

    def __init__(self, max_tokens: int = 200_000, depth: int = 32) -> None:
        super().__init__()
        if max_tokens < 2 or depth < 1:
            raise ConfigError(
                f"max_tokens is {max_tokens} and depth {depth}.", "Use max_tokens of 2 and depth of 1, or more."
            )
        self.max_tokens, self.depth = max_tokens, depth
        self.generations = [SuffixCounts(depth)]

    @property
    def num_tokens(self) -> int:
        """Tokens kept."""
        return sum(counts.num_tokens for counts in self.generations)

    def add(self, tokens: Sequence[int]) -> None:
        """Add a text, as if it had been written."""
        self.note(tokens)
        counts, tip = self.begin(), Tip()
        for token in tokens:
            counts.append(tip, token)

    def begin(self) -> SuffixCounts:
        """Return where a new text goes."""
        if self.generations[-1].num_tokens >= self.max_tokens // 2:
            self.generations = [self.generations[-1], SuffixCounts(self.depth)]
        return self.generations[-1]


class SuffixHistory:
    """One row's text, and what was written by others where the caller keeps a memory.

    Args:
        depth: longest match in the row's own text.
        given: leading tokens that are not the run's output, and do not go into the memory.
        memory: outputs of earlier calls, or None.
        before: what stands before the text and may be matched too, such as a source.
    """

    def __init__(self, depth: int, given: int, memory: SuffixMemory | None = None, before: Sequence[int] = ()) -> None:
        self._counts, self._tip, self._match = SuffixCounts(depth), Tip(), Place()
        self._size, self._given, self._memory = 0, given, memory
        self._writes: tuple[SuffixCounts, Tip] | None = None
        self._reads: list[tuple[SuffixCounts, Place]] = []
        for token in before:
            self._add(token)

    def extend(self, text: Sequence[int]) -> None:
        """Take in what the text has grown by."""
        for token in text[self._size :]:
            self._add(token)
        if self._memory is not None:
            self._share(self._memory, text)
        self._size = len(text)

    def _add(self, token: int) -> None:
        self._counts.advance(self._match, token)  # before the token is added: a match lies in the past
        self._counts.append(self._tip, token)

    def draft(self, rule: SuffixRule) -> Draft:
        """Return the best draft, the row's own text first."""
        best = self._counts.draft(self._match, rule, Draft())
        for counts, place in self._reads:
            best = counts.draft(place, rule, best)
        return best

    def copy(self) -> SuffixHistory:
        """Return an independent copy (a forked row); the memory stays shared."""
        other = SuffixHistory(0, self._given, self._memory)
        other._counts, other._tip, other._match = self._counts.copy(), self._tip.copy(), self._match.copy()
        other._size = self._size
        other._writes = None if self._writes is None else (self._writes[0], self._writes[1].copy())
        other._reads = [(counts, place.copy()) for counts, place in self._reads]
        return other

    def _share(self, memory: SuffixMemory, text: Sequence[int]) -> None:
        """Follow the memory along the text's end, and add to it what the run has written."""
        first = min(len(text), max(self._size, self._given))
        known = {id(counts): place for counts, place in self._reads}
        self._reads = [(counts, known.get(id(counts)) or Place()) for counts in memory.generations]
        for counts, place in self._reads:
            if id(counts) not in known:
                for token in text[max(0, first - memory.depth) : first]:
                    counts.advance(place, token)
        for token in text[first:]:
            for counts, place in self._reads:
                counts.advance(place, token)
            self._write(memory, token)

    def _write(self, memory: SuffixMemory, token: int) -> None:
        if self._writes is None:
            self._writes = (memory.begin(), Tip())
        counts, tip = self._writes
        counts.append(tip, token)
