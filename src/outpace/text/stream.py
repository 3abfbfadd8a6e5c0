"""Text from tokens while they arrive: whole characters only, and stop strings across token borders.

Knows a tokenizer's `decode` and nothing of models or methods. What a stream writes is what `decode` makes of prompt and
written tokens together, beyond the beginning that this shares with what it makes of the prompt alone: a character that
the prompt leaves unfinished belongs to the text once it is finished, and marks for what stays unfinished are not
written again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from os.path import commonprefix
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["TextStream"]

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4  # bytes, hence at most this many tokens make one
_MANY = 16  # tokens without one whole character, behind which no more are asked for

# Which tokens never show, by whom they are decoded: the same of every text.
_SILENT: WeakKeyDictionary[Any, dict[int, bool]] = WeakKeyDictionary()


def _silent_of(decode: Callable[[list[int]], str]) -> dict[int, bool]:
    """Return what is known of tokens that never show, shared by all texts that one tokenizer's own `decode` decodes."""
    owner = getattr(decode, "__self__", None)
    return {} if owner is None or decode != owner.decode else _SILENT.setdefault(owner, {})


class TextStream:
    """One row's text, token by token; the work per token does not grow with the text.

    Args:
        decode: ids to text. Bytes that do not form a character give U+FFFD; tokens that never show (special ones, if
            they are skipped) may stand anywhere.
        stops: stop strings; text from the first one on is never released.
        context: the prompt's tokens; they decide how the first written ones are spaced.
        byte: the byte that a token stands for, where runs of bytes become characters all together or not at all (the
            ByteFallback decoder): their text waits for the end of the run, stop strings do not. None = what the
            object says that `decode` is a method of; if it says nothing, no token is of this kind.
        special: names of tokens that `decode` does not show, for stop strings that hold such a name.
        covered: tokens that spell the end of the prompt, which the first written token writes in their place.

    Attributes:
        ends: per token pushed, how many characters of the text no later token can change or take back.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        stops: Sequence[str] = (),
        context: Sequence[int] = (),
        special: Mapping[int, str] | None = None,
        byte: Callable[[int], int | None] | None = None,
        covered: Sequence[int] = (),
    ) -> None:
        self._decode = decode
        self._byte = byte or getattr(getattr(decode, "__self__", None), "byte", None) or _no_byte
        self._is_silent = _silent_of(decode)
        self._special = dict(special or {})
        self._naming = tuple(stop for stop in stops if any(name in stop for name in self._special.values()))
        self._stops = tuple(stop for stop in stops if stop not in self._naming)
        self._stop_bytes = tuple(stop.encode(errors="replace") for stop in self._stops)
        self._named = ""  # the end of the text with the names in it, as long as a stop string that holds one
        self._is_shown: list[bool] = []  # its letters that are no name's
        self._pieces: list[str] = []
        self._held = ""  # behind the pieces: what may become a stop string
        self._num_released, self._num_out = 0, 0  # pieces, and characters
        self._size = 0  # characters of the pieces
        self.ends: list[int] = []
        self.is_stopped = False
        self._window = self._tail(list(context))  # the last tokens, enough of them to decode what follows
        self._prompt = decode([*self._window, *covered])  # emptied when the text has left it behind
        self._known = 0  # characters of the window's text that are out
        self._most = 2 * _LONGEST_CHARACTER  # tokens that the window holds before it is cut
        self._run: bytearray | None = None  # bytes since the last token that is none, behind text that may begin a stop
        for token in self._window:
            self._enter(token)

    @property
    def has_stops(self) -> bool:
        """Whether some string ends the text."""
        return bool(self._stops or self._naming)

    def fork(self) -> TextStream:
        """Return an independent copy, to go on with another text."""
        other = copy.copy(self)
        for name in ("_is_shown", "_pieces", "_window", "_run", "ends"):
            setattr(other, name, copy.copy(getattr(self, name)))
        return other

    def push(self, token: int) -> bool:
        """Add one token; return whether a stop string is now complete. Tokens after a stop are ignored."""
        self._push(token)
        self.ends.append(self._size)
        return self.is_stopped

    def _push(self, token: int) -> None:
        if self._naming and token in self._special and not self.is_stopped:
            self._pass_name(self._special[token])
        if self.is_stopped or self._is_never_seen(token):
            return
        self._window.append(token)
        if self._enter(token):
            self._stop_within_run()
            return
        whole = self._decode(self._window)
        self._take(whole, self._certain(whole))
        if len(self._window) > self._most and not self._prompt:
            self._window, open_end = self._tail(self._window), len(whole) - self._known
            self._known = len(self._decode(self._window)) - open_end
            self._most = 2 * max(_LONGEST_CHARACTER, len(self._window))

    def _is_never_seen(self, token: int) -> bool:
        if token not in self._is_silent:
            self._is_silent[token] = not self._decode([token, token])  # twice: a decoder may strip what stands first
        return self._is_silent[token]

    def _enter(self, token: int) -> bool:
        """Begin, go on with or end a run of bytes; return whether the token is one."""
        byte = self._byte(token)
        if byte is None:
            self._run = None
            return False
        if self._run is None:
            self._run = bytearray(self._held.encode())
        self._run.append(byte)
        return True

    def _tail(self, tokens: list[int]) -> list[int]:
        """Return the last tokens, enough of them that what they add to a text does not depend on those before.

        They begin with one that is not part of a run, and they write a character: whatever a decoder does with the
        first characters of a text is done, and bytes behind a whole character are read in step.
        """
        size = _LONGEST_CHARACTER
        while size < len(tokens):
            if self._byte(tokens[-size]) is not None or self._is_never_seen(tokens[-size]):
                size += 1
                continue
            text = self._decode(tokens[-size:])
            if text.strip(_BROKEN) or (text and size > _MANY):
                break
            size *= 2
        return [token for token in tokens[-size:] if not self._is_never_seen(token)]

    def _certain(self, whole: str) -> int:
        """Return how many characters of the window's text no further token can change."""
        end = len(whole.rstrip(_BROKEN))
        if end == len(whole):
            return end
        # An unfinished character shows as a mark at the end, and it began among the last three tokens.
        return max(end, len(self._decode(self._window[: 1 - _LONGEST_CHARACTER])))

    def _take(self, whole: str, end: int) -> None:
        """Let out the window's text up to a place."""
        start = self._start(whole)
        if end > start:
            self._prompt, self._known = "", end
            self._extend(whole[start:end])

    def _start(self, whole: str) -> int:
        return max(self._known, len(commonprefix([self._prompt, whole])))  # noqa: RUF071  letters are meant

    def _stop_within_run(self) -> None:
        """End the run here if the bytes so far complete a stop string."""
        if self._run is not None and self._run.endswith(self._stop_bytes):
            whole = self._decode(self._window)
            fresh = self._held + whole[self._start(whole) :]
            if any(stop in fresh for stop in self._stops):
                self._take(whole, len(whole))

    def _pass_name(self, name: str) -> None:
        """Let a token's name stand for it where a stop string holds it."""
        whole = self._decode(self._window)
        fresh = self._named + whole[self._start(whole) :] + name
        if any(stop in fresh for stop in self._naming):  # what waited is text, since none comes behind it
            self._take(whole, len(whole))
        if not self.is_stopped:
            self._extend("", name)

    def _extend(self, piece: str, name: str = "") -> None:
        """Append to the text, up to a stop string; a name behind the piece does not show."""
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        end = len(text) - self._held_back(text, self._stops)
        if self._naming:
            named, self._is_shown = (
                self._named + piece + name,
                self._is_shown + [True] * len(piece) + [False] * len(name),
            )
            starts = [at for stop in self._naming if (at := named.find(stop)) >= 0]
            found += [len(text) - sum(self._is_shown[at:]) for at in starts]
            held = self._held_back(named, self._naming)
            end = min(end, len(text) - sum(self._is_shown[len(named) - held :]))
            self._named, self._is_shown = named[len(named) - held :], self._is_shown[len(named) - held :]
        self.is_stopped = bool(found)
        end = min(found, default=end)
        if end > 0:
            self._pieces.append(text[:end])
            self._size += end
        self._held = "" if found else text[end:]

    def flush(self) -> None:
        """Let an unfinished character or run of bytes through: no more tokens come."""
        if not self.is_stopped:
            whole = self._decode(self._window)
            self._take(whole, len(whole))

    def release(self, is_final: bool = False) -> str:
        """Return text not yet released that can no longer become part of a stop string."""
        if is_final:
            self._pieces.append(self._held)
            self._held = ""
        piece = "".join(self._pieces[self._num_released :])
        self._num_released = len(self._pieces)
        self._num_out += len(piece)
        return piece

    def release_each(self, places: range, is_final: bool = False) -> list[str]:
        """Return what `release` would, cut into what became final with each of some tokens; [] for none.

        Args:
            places: of the tokens among those pushed, up to the last one; those behind were never pushed (an end token).
            is_final: no more tokens come: the text behind an open end goes with the last one.
        """
        if not places:
            return []
        began = self._num_out
        piece = self.release(is_final)
        ends = [max(0, end - began) for end in self.ends[places.start : places.stop]]
        ends += [ends[-1] if ends else 0] * (len(places) - len(ends))
        ends[-1] = len(piece)
        return [piece[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def _held_back(self, text: str, stops: Sequence[str]) -> int:
        """Return how many trailing characters could be the start of a stop string."""
        for size in range(max((len(stop) for stop in stops), default=1) - 1, 0, -1):
            if any(len(stop) > size and text.endswith(stop[:size]) for stop in stops):
                return size
        return 0

    @property
    def text(self) -> str:
        """All text so far, cut before a stop string."""
        return "".join(self._pieces) + self._held


def _no_byte(_: int) -> None:
    """Say of every token that it is no single byte."""
