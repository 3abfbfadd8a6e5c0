"""Text that is read while it arrives: a walk goes as far as the text does, pauses there, and never sees its pieces."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Generator, Iterable
from typing import TypeVar

__all__ = ["Ended", "Fault", "Marks", "Tape", "Walk"]

T = TypeVar("T")
Walk = Generator[None, None, T]  # yields where it needs more text

_SPACES, _LETTERS, _WORD = re.compile(r"\s*"), re.compile(r'[^"\\\x00-\x1f]*'), re.compile(r"[-+.\w]*")
_JSON_SPACES = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_DEEPEST = 100  # levels of JSON


class Fault(Exception):
    """The text is not what was looked for."""


class Ended(Fault):
    """The text ended too soon."""


class Marks:
    """Texts to look out for; `Marks.of` makes them once for many parsers.

    Attributes:
        pattern: finds the first of them.
        beginnings: what may become one.
        longest: characters of the longest.
    """

    def __init__(self, marks: Iterable[str]) -> None:
        known = sorted({mark for mark in marks if mark}, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, known)) or r"(?!)")
        self.beginnings = {mark[:size] for mark in known for size in range(1, len(mark))}
        self.longest = max(map(len, known), default=0)

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(marks: frozenset[str]) -> Marks:
        """Return the marks of some texts: a tokenizer may have hundreds of special ones."""
        return Marks(marks)


class Tape:
    """What arrived of a text, and how far it was read.

    Attributes:
        text: what is kept of it.
        at: how much of that was read.
        is_ended: no more will come.
    """

    def __init__(self) -> None:
        self.text, self.at, self.is_ended = "", 0, False

    def cut(self) -> None:
        """Forget what was read."""
        self.text, self.at = self.text[self.at :], 0

    def peek(self) -> Walk[str]:
        """Return the next character, "" behind the end."""
        while self.at >= len(self.text):
            if self.is_ended:
                return ""
            yield
        return self.text[self.at]

    def run(self, pattern: re.Pattern[str]) -> Walk[str]:
        """Pass characters of a class, given as `[...]*`; return the next one."""
        while True:
            found = pattern.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text) or self.is_ended:
                return self.text[self.at : self.at + 1]
            yield

    def spaces(self) -> Walk[str]:
        """Pass white space; return the next character."""
        return (yield from self.run(_SPACES))

    def take(self, wanted: str) -> Walk[bool]:
        """Pass a text if it comes next; return whether it does."""
        while not self.text.startswith(wanted, self.at):
            if self.is_ended or not wanted.startswith(self.text[self.at :]):
                return False
            yield
        self.at += len(wanted)
        return True

    def find(self, marks: Marks) -> tuple[int, str]:
        """Return where the first of some marks stands, and which; "" where one may be beginning, or at the end.

        The longest of those that begin at one place counts, so that the answer does not depend on what arrived when.
        """
        found, end = marks.pattern.search(self.text, self.at), len(self.text)
        first = found.start() if found else end
        if not self.is_ended:
            for start in range(max(self.at, end - marks.longest + 1), min(first + 1, end)):
                if self.text[start:] in marks.beginnings:
                    return start, ""
        return first, found.group() if found else ""

    # JSON, as RFC 8259 has it

    def json_next(self) -> Walk[str]:
        """Pass JSON's white space; return the next character, or raise `Ended`."""
        found = yield from self.run(_JSON_SPACES)
        if not found:
            raise Ended
        return found

    def expect(self, *wanted: str) -> Walk[str]:
        """Pass one of some characters, behind white space, and return it, or raise a fault."""
        found = yield from self.json_next()
        if found not in wanted:
            raise Fault
        self.at += 1
        return found

    def string(self) -> Walk[None]:
        """Pass a JSON string."""
        yield from self.expect('"')
        while True:
            found = yield from self.run(_LETTERS)
            self.at += 1
            if found == '"':
                return
            if found != "\\":  # a control character, or the end
                self.at -= 1
                raise Fault if found else Ended
            yield from self._escape()

    def _escape(self) -> Walk[None]:
        for wanted in ('"\\/bfnrtu', *["0123456789abcdefABCDEF"] * 4):
            found = yield from self.peek()
            if not found or found not in wanted:
                raise Fault if found else Ended
            self.at += 1
            if wanted[0] == '"' and found != "u":
                return

    def words(self) -> Walk[str]:
        """Return a JSON string's value; nothing may cut the tape meanwhile."""
        yield from self.json_next()
        start = self.at
        yield from self.string()
        return str(json.loads(self.text[start : self.at]))

    def value(self, depth: int = 0) -> Walk[None]:
        """Pass a JSON value; a fault leaves the tape at the first character that is wrong."""
        found = yield from self.json_next()
        if depth > _DEEPEST:
            raise Fault
        if found == '"':
            yield from self.string()
        elif found in "{[":
            yield from self._items(found, depth)
        else:
            yield from self._literal()

    def _items(self, kind: str, depth: int) -> Walk[None]:
        self.at += 1
        end = "}" if kind == "{" else "]"
        found = yield from self.json_next()
        if found == end:
            self.at += 1
            return
        while True:
            if kind == "{":
                yield from self.string()
                yield from self.expect(":")
            yield from self.value(depth + 1)
            if (yield from self.expect(",", end)) == end:
                return

    def _literal(self) -> Walk[None]:
        word = ""
        while True:
            found = _WORD.match(self.text, self.at)
            assert found is not None
            word, self.at = word + found.group(), found.end()
            if self.at < len(self.text) or self.is_ended:
                break
            yield
        if self.at == len(self.text):  # it may have gone on
            raise Ended
        if word not in ("true", "false", "null") and not _NUMBER.fullmatch(word):
            raise Fault
