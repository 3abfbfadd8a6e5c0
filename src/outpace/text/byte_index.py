"""A vocabulary by the bytes that its tokens write: which tokens begin with some bytes, and which byte comes next."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["END", "ByteIndex"]

END = 256  # the outcome "the text ends here", beside the 256 bytes
_MOST_KNOWN = 4096  # strings whose tokens are kept


class ByteIndex:
    """Tokens in the order of their bytes, so that those which begin with some bytes are neighbours.

    Args:
        spellings: per id the bytes that it writes; None or b"" = none.
        ends: ids that end a text.
    """

    def __init__(self, spellings: Sequence[bytes | None], ends: Sequence[int] = ()) -> None:
        pairs = sorted((text, index) for index, text in enumerate(spellings) if text and index not in ends)
        self._texts = [text for text, _ in pairs]
        self._ids = torch.tensor([index for _, index in pairs], dtype=torch.int64)
        self._sizes = {index: len(text) for text, index in pairs}
        self.ends = torch.tensor(sorted(ends), dtype=torch.int64)
        self.longest = max(map(len, self._texts), default=0)
        self.following = functools.lru_cache(maxsize=_MOST_KNOWN)(self._following)

    def __len__(self) -> int:
        return len(self._texts)

    def size(self, token: int) -> int:
        """Return how many bytes a token writes."""
        return self._sizes.get(token, 0)

    def _range(self, text: bytes) -> tuple[int, int]:
        return bisect_left(self._texts, text), _first_behind(self._texts, text)

    def begins(self, text: bytes) -> bool:
        """Return whether some token is longer than `text` and begins with it."""
        low, high = self._range(text)
        return high > low and len(self._texts[high - 1]) > len(text)

    def exact(self, text: bytes) -> list[int]:
        """Return the tokens that write just `text`."""
        low, high = self._range(text)
        end = next((at for at in range(low, high) if len(self._texts[at]) > len(text)), high)
        return sorted(self._ids[low:end].tolist())

    def _following(self, text: bytes) -> tuple[Tensor, Tensor]:
        """Return the tokens [K] int64 that are longer than `text` and begin with it, and the byte [K] behind it."""
        low, high = self._range(text)
        low = next((at for at in range(low, high) if len(self._texts[at]) > len(text)), high)
        size = len(text)
        return self._ids[low:high], torch.tensor([one[size] for one in self._texts[low:high]], dtype=torch.int64)


def _first_behind(texts: Sequence[bytes], text: bytes) -> int:
    """Return the place of the first of some sorted strings that is larger than all that begin with `text`."""
    stem = text.rstrip(b"\xff")
    return bisect_left(texts, stem[:-1] + bytes([stem[-1] + 1])) if stem else len(texts)
