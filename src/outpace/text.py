"""Text from tokens while they arrive: whole characters only, and stop strings across token borders.

Knows a tokenizer's `decode` and nothing of models or methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

__all__ = ["TextStream"]

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4  # bytes, hence at most this many tokens wait for a character to be complete


class TextStream:
    """One row's text, token by token.

    Args:
        decode: ids to text; bytes that do not form a character give U+FFFD.
        stops: stop strings; text from the first one on is never released.
        context: prompt tokens just before the first written one; they decide how the first is spaced. A character that
            the prompt leaves unfinished belongs to the text once it is finished.
        special: names of tokens that have no text, for stop strings that hold such a name.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        stops: Sequence[str] = (),
        context: Sequence[int] = (),
        special: Mapping[int, str] | None = None,
    ) -> None:
        self._decode = decode
        self._special = dict(special or {})
        self._naming = tuple(stop for stop in stops if any(name in stop for name in self._special.values()))
        self._stops = tuple(stop for stop in stops if stop not in self._naming)
        self._named = ""  # the text with the names in it, where a stop string wants them
        self._names: list[range] = []  # where they stand
        self._window = list(context[-2 * _LONGEST_CHARACTER :])
        self._num_prompt = len(self._window)  # tokens of the window that are prompt
        self._known = len(self._window)  # tokens of the window whose text is out
        least = max(0, self._known - _LONGEST_CHARACTER + 1)
        while self._known > least and decode(self._window[: self._known]).endswith(_BROKEN):
            self._known -= 1
        self._text = ""
        self._released = 0
        self.is_stopped = False

    def push(self, token: int) -> bool:
        """Add one token; return whether a stop string is now complete. Tokens after a stop are ignored."""
        if self.is_stopped:
            return True
        if self._naming and token in self._special:
            self.flush()
            self._names.append(range(len(self._named), len(self._named) + len(self._special[token])))
            if self._extend("", self._special[token]):
                return True
        self._window.append(token)
        is_open = self._behind(self._known, len(self._window)).endswith(_BROKEN)  # how an unfinished character shows
        if is_open and len(self._window) - self._known < _LONGEST_CHARACTER:
            return False
        if is_open:  # what began with the oldest token never ends; the others may still
            piece = self._behind(self._known, self._known + 1) if self._known >= self._num_prompt else ""
            self._known += 1
            excess = max(0, self._known - _LONGEST_CHARACTER)
            self._window, self._known = self._window[excess:], self._known - excess
            self._num_prompt -= excess
            return self._extend(piece)
        piece = self._fresh()
        self._window, self._num_prompt = self._window[self._known :], 0
        self._known = len(self._window)
        return self._extend(piece)

    def _behind(self, start: int, end: int) -> str:
        """Return what the window's tokens from `start` to `end` add to the text before them."""
        return self._decode(self._window[:end])[len(self._decode(self._window[:start])) :]

    def _fresh(self) -> str:
        """Return the text that is not out yet, without what the prompt's last tokens say on their own."""
        piece = self._behind(self._known, len(self._window))
        if self._known >= self._num_prompt:
            return piece
        head = self._behind(self._known, self._num_prompt)
        return piece.removeprefix(head if piece.startswith(head) else head.rstrip(_BROKEN))

    def _extend(self, piece: str, name: str = "") -> bool:
        start = max(0, len(self._text) - max((len(stop) for stop in self._stops), default=0))
        self._text += piece
        found = [at for stop in self._stops if (at := self._text.find(stop, start)) >= 0]
        if self._naming:
            start = max(0, len(self._named) - max(len(stop) for stop in self._naming))
            self._named += piece + name
            found += [self._shown(at) for stop in self._naming if (at := self._named.find(stop, start)) >= 0]
        if found:
            self._text, self.is_stopped = self._text[: min(found)], True
        return self.is_stopped

    def _shown(self, at: int) -> int:
        """Return how many characters before one of the text with names are text."""
        return at - sum(max(0, min(name.stop, at) - name.start) for name in self._names)

    def flush(self) -> None:
        """Let an unfinished character through: no more tokens come."""
        if not self.is_stopped and self._known < len(self._window):
            piece = self._fresh()
            self._known = len(self._window)
            self._extend(piece)

    def release(self, is_final: bool = False) -> str:
        """Return text not yet released that can no longer become part of a stop string."""
        end = len(self._text) if is_final or self.is_stopped else self._safe()
        piece, self._released = self._text[self._released : end], max(self._released, end)
        return piece

    def _safe(self) -> int:
        """Return where the text begins that may become part of a stop string."""
        end = len(self._text) - self._held_back(self._text, self._stops)
        return (
            min(end, self._shown(len(self._named) - self._held_back(self._named, self._naming)))
            if self._naming
            else end
        )

    def _held_back(self, text: str, stops: Sequence[str]) -> int:
        """Return how many trailing characters could be the start of a stop string."""
        for size in range(max((len(stop) for stop in stops), default=1) - 1, 0, -1):
            if any(len(stop) > size and text.endswith(stop[:size]) for stop in stops):
                return size
        return 0

    @property
    def text(self) -> str:
        """All text so far, cut before a stop string."""
        return self._text
