"""Python's regular expressions, read by Python's own parser, as trees without flags and anchors.

A class of characters is what `re` says it is: each is asked about every code point once, so that Unicode, `(?i)` and
`(?a)` mean exactly what they mean there. Anchors are replaced by what they say about their neighbours.
"""

from __future__ import annotations

import functools
import importlib
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from outpace.constrain.expression import (
    EMPTY,
    LAST,
    NOTHING,
    Letters,
    Node,
    chain,
    choice,
    edge_in,
    is_nullable,
    matches_letter,
    nonempty,
    repeat,
    size,
)
from outpace.errors import ConfigError

__all__ = ["read_pattern", "search_pattern"]

# Python's own parser is private, and no type checker knows it.
codes: Any = importlib.import_module("re._constants")
parser: Any = importlib.import_module("re._parser")

_FLAGS = re.IGNORECASE | re.MULTILINE | re.DOTALL | re.ASCII
_MOST_SIZE = 200_000  # characters of a tree, repeats written out
_EVERYTHING = Letters.of([(0, LAST)])
_UNKNOWN = {
    "GROUPREF": "back references are not known",
    "GROUPREF_EXISTS": "conditions on groups are not known",
    "ASSERT": "looking ahead or behind is not known",
    "ASSERT_NOT": "looking ahead or behind is not known",
    "ATOMIC_GROUP": "atomic groups are not known",
    "POSSESSIVE_REPEAT": "possessive repeats are not known",
}


def read_pattern(pattern: str, kind: str = "regular expression") -> Node:
    """Return the texts that `re.fullmatch` accepts.

    Args:
        pattern: in Python's syntax, without looking around, back references, atomic groups and possessive repeats.
        kind: what to call it in an error.

    Raises:
        ConfigError: it cannot be read, or uses something else.
    """
    return _read(pattern, kind, is_search=False)


def search_pattern(pattern: str, kind: str = "pattern") -> Node:
    """Return the texts in which `re.search` finds a match, except that `$` is the end alone, as in ECMA-262.

    Raises:
        ConfigError: as for `read_pattern`.
    """
    return _read(pattern, kind, is_search=True)


@functools.lru_cache(maxsize=256)
def _read(pattern: str, kind: str, is_search: bool) -> Node:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of brackets within a class, which later Pythons may read otherwise
            parsed = parser.parse(pattern)
        node = _Reader(parsed, is_search, _kinds(_anchors(parsed, parsed.state.flags))).whole()
    except _Unknown as error:
        reason = str(error)
    except RecursionError:
        reason = "its parts lie too deep within each other"
    except re.error as error:
        reason = error.msg + (f" at character {error.pos}" if error.pos else "")
    except (ValueError, OverflowError) as error:
        reason = str(error)
    else:
        return node
    shown = repr(pattern if len(pattern) <= 60 else pattern[:57] + "...")
    raise ConfigError(f"The {kind} {shown} cannot be used: {reason}.", _HINT)


_HINT = "It is read as Python's re reads it; escape characters that stand for themselves."


class _Unknown(Exception):
    """Something that the tree cannot hold."""


# What may stand to the right of a place: a set of numbers of the reader's kinds of characters, or one of these.
_END, _LAST_LINE = -1, -2  # the end of the text; a line break that is the last character

_Branches = dict[tuple[int, frozenset[int]], Node]  # by kind of character on the left, and what may stand on the right


class _Reader:
    """Brings one parsed expression into a tree."""

    def __init__(self, parsed: Any, is_search: bool, kinds: list[Letters]) -> None:
        self._parsed, self._is_search, self._kinds = parsed, is_search, kinds
        self._open = frozenset({*range(len(self._kinds)), _END, _LAST_LINE})

    def whole(self) -> Node:
        """Return the tree of whole texts."""
        # Left of the text there is no character either; where nothing looks at it, it may as well be any.
        left = _END if _anchors(self._parsed, self._parsed.state.flags) else 0
        begin: _Branches = {(left, self._open): EMPTY}
        anything = repeat(_EVERYTHING, 0, None)
        if self._is_search:
            begin = self._behind(begin, anything)
        found = self._chain(begin, self._parsed, self._parsed.state.flags)
        if self._is_search:
            found = self._behind(found, anything)
        return choice(node for (_, right), node in found.items() if _END in right)

    def _chain(self, branches: _Branches, items: Iterable[Any], flags: int) -> _Branches:
        for code, value in items:
            branches = self._item(branches, code, value, flags)
        return branches

    def _item(self, branches: _Branches, code: Any, value: Any, flags: int) -> _Branches:
        """Return what branches become when one parsed item follows."""
        if code is codes.SUBPATTERN:
            _, more, less, inner = value
            return self._chain(branches, inner, (flags | more) & ~less)
        if code is codes.BRANCH:
            return _joined(self._chain(branches, part, flags) for part in value[1])
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            least, most, inner = value
            return self._repeated(branches, inner, least, None if most is codes.MAXREPEAT else most, flags)
        if code is codes.AT:
            return self._anchored(branches, value, flags)
        if str(code) == "FAILURE" or (code is codes.ASSERT_NOT and not len(value[1])):
            return {}  # (?!), by its name in newer and in older Pythons
        return self._behind(branches, _letters(code, value, flags))

    def _repeated(self, branches: _Branches, inner: Any, least: int, most: int | None, flags: int) -> _Branches:
        if not _anchors(inner, flags):
            plain = self._plain(inner, flags)
            node = repeat(plain, least, most)
            if size(node) > _MOST_SIZE:
                raise _Unknown(f"its repeats written out are more than {_MOST_SIZE} characters")
            return self._behind(branches, node)
        for _ in range(least):
            branches = self._small(self._chain(branches, inner, flags))
        if most is None:
            return self._endless(branches, inner, flags)
        found = branches
        for _ in range(most - least):
            branches = self._small(self._chain(branches, inner, flags))
            found = _joined([found, branches])
        return found

    def _plain(self, inner: Any, flags: int) -> Node:
        """Return the tree of a part without anchors."""
        reader = _Reader(inner, False, [_EVERYTHING])
        return choice(reader._chain({(0, reader._open): EMPTY}, inner, flags).values())

    def _endless(self, branches: _Branches, inner: Any, flags: int) -> _Branches:
        """Return any number of repeats of a part with anchors: sums over all walks between branches (Kleene)."""
        keys, steps = list(branches), dict[tuple[Any, Any], Node]()
        for key in keys:
            for target, node in self._chain({key: EMPTY}, inner, flags).items():
                steps[key, target] = node
                if target not in keys:
                    keys.append(target)
        for through in keys:
            around = repeat(steps.get((through, through), NOTHING), 0, None)
            ways = {pair: node for pair, node in steps.items() if through in pair}
            for (start, one), before in ways.items():
                for (other, goal), after in ways.items():
                    if one == through == other and start != through != goal:
                        detour = chain((before, around, after))
                        _add(steps, (start, goal), detour)
            for (start, goal), node in ways.items():
                if goal == through != start:
                    steps[start, goal] = chain((node, around))
                elif start == through != goal:
                    steps[start, goal] = chain((around, node))
            if (through, through) in steps:
                steps[through, through] = nonempty(around)
            if sum(map(size, steps.values())) > _MOST_SIZE:
                raise _Unknown("its anchors make too many cases")
        found = dict(branches)
        for (start, goal), node in steps.items():
            if start in branches:
                _add(found, goal, chain((branches[start], node)))
        return self._small(found)

    def _small(self, branches: _Branches) -> _Branches:
        if sum(map(size, branches.values())) > _MOST_SIZE:
            raise _Unknown("its anchors make too many cases")
        return branches

    def _behind(self, branches: _Branches, node: Node) -> _Branches:
        """Return what branches become when a part without anchors follows."""
        found: _Branches = {}

        for (left, right), before in branches.items():
            if len(self._kinds) == 1 and left >= 0 and right == self._open:  # where it leads is where it came from
                _add(found, (left, right), chain((before, node)))
                continue
            if is_nullable(node):
                _add(found, (left, right), before)
            rest = nonempty(node)
            if right != self._open:
                allowed = Letters.of(run for at in right if at >= 0 for run in self._kinds[at].ranges)
                rest = edge_in(rest, allowed, is_first=True)
                if _LAST_LINE in right and "\n" not in allowed and matches_letter(node, "\n"):
                    line = next(at for at, kind in enumerate(self._kinds) if "\n" in kind)
                    _add(found, (line, frozenset({_END})), chain((before, Letters.of([(10, 10)]))))
            for at, kind in enumerate(self._kinds):
                _add(
                    found,
                    (at, self._open),
                    chain((before, rest if len(self._kinds) == 1 else edge_in(rest, kind, is_first=False))),
                )
        return found if len(self._kinds) == 1 else self._small(found)

    def _anchored(self, branches: _Branches, where: Any, flags: int) -> _Branches:
        """Return the branches that an anchor leaves."""
        found: _Branches = {}
        for (left, right), node in branches.items():
            right = right & self._right(where, left, flags)
            if right:
                _add(found, (left, right), node)
        return found

    def _right(self, where: Any, left: int, flags: int) -> frozenset[int]:
        """Return what may stand on the right of an anchor with some kind of character on its left."""
        is_line = bool(flags & re.MULTILINE)
        everything, nothing = self._open, frozenset[int]()
        if where in (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING):
            is_begin = left == _END or (is_line and where is codes.AT_BEGINNING and "\n" in self._kinds[left])
            return everything if is_begin else nothing
        if where is codes.AT_END and is_line:
            return frozenset({_END, _LAST_LINE, *(at for at, kind in enumerate(self._kinds) if "\n" in kind)})
        if where is codes.AT_END and not self._is_search:
            return frozenset({_END, _LAST_LINE})
        if where in (codes.AT_END, codes.AT_END_STRING):
            return frozenset({_END})
        inside = _word(flags)
        words = frozenset(at for at, kind in enumerate(self._kinds) if (kind & inside).ranges)
        if where is codes.AT_BOUNDARY:
            return self._open - words if left in words else words
        # Before Python 3.14, no anchor of words holds in the empty text.
        return words if left in words else self._open - words - ({_END} if left == _END else nothing)


def _add(branches: dict[Any, Node], key: Any, node: Node) -> None:
    """Give a key one more alternative."""
    if node != NOTHING:
        branches[key] = choice((branches[key], node)) if key in branches else node


def _joined(many: Iterable[_Branches]) -> _Branches:
    found: dict[tuple[int, frozenset[int]], list[Node]] = {}
    for branches in many:
        for key, node in branches.items():
            found.setdefault(key, []).append(node)
    return {key: choice(nodes) for key, nodes in found.items()}


def _anchors(items: Iterable[Any], flags: int) -> frozenset[str]:
    """Return what the anchors of a part look at: "edge", "line", "word" or "ascii word"."""
    found: set[str] = set()
    for code, value in items:
        if code is codes.SUBPATTERN:
            found |= _anchors(value[3], (flags | value[1]) & ~value[2])
        elif code is codes.BRANCH:
            found |= {name for part in value[1] for name in _anchors(part, flags)}
        elif code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            found |= _anchors(value[2], flags)
        elif code is codes.AT and value in (codes.AT_BOUNDARY, codes.AT_NON_BOUNDARY):
            found.add("ascii word" if flags & re.ASCII else "word")
        elif code is codes.AT:
            found.add("line" if flags & re.MULTILINE and value in (codes.AT_BEGINNING, codes.AT_END) else "edge")
    return frozenset(found)


def _kinds(anchors: frozenset[str]) -> list[Letters]:
    """Return the kinds of characters that some anchors tell apart."""
    kinds = [_EVERYTHING]
    for name in sorted(anchors - {"edge"}):
        test = Letters.of([(10, 10)]) if name == "line" else _word(re.ASCII if name == "ascii word" else 0)
        split = [part for kind in kinds for part in (kind & test, kind & ~test)]
        kinds = [kind for kind in split if kind.ranges]
    return kinds


def _word(flags: int) -> Letters:
    return _asked(r"[\w]", flags & re.ASCII)


def _letters(code: Any, value: Any, flags: int) -> Letters:
    """Return the set of characters of a parsed literal or class."""
    if str(code) in _UNKNOWN:
        raise _Unknown(_UNKNOWN[str(code)])
    if code is codes.ANY:
        return _EVERYTHING if flags & re.DOTALL else ~Letters.of([(10, 10)])
    if code is codes.LITERAL:
        value = [(codes.LITERAL, value)]
    elif code is codes.NOT_LITERAL:
        value = [(codes.NEGATE, None), (codes.LITERAL, value)]
    elif code is not codes.IN:
        raise _Unknown(f"{str(code).lower()} is not known")
    if flags & re.IGNORECASE:
        return _asked(_class(value), flags & (re.IGNORECASE | re.ASCII))
    is_negated = value[0][0] is codes.NEGATE
    ranges: list[tuple[int, int]] = []
    for kind, what in value[1:] if is_negated else value:
        if kind is codes.CATEGORY:
            ranges += _asked(f"[{_CATEGORIES[str(what)]}]", flags & re.ASCII).ranges
        else:
            ranges.append(what if kind is codes.RANGE else (what, what))
    return ~Letters.of(ranges) if is_negated else Letters.of(ranges)


_CATEGORIES = {
    "CATEGORY_DIGIT": r"\d", "CATEGORY_NOT_DIGIT": r"\D", "CATEGORY_SPACE": r"\s", "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w", "CATEGORY_NOT_WORD": r"\W",
}  # fmt: skip


def _class(items: Sequence[tuple[Any, Any]]) -> str:
    """Return a parsed class as it can be written."""
    found = []
    for kind, what in items:
        if kind is codes.NEGATE:
            found.append("^")
        elif kind is codes.CATEGORY:
            found.append(_CATEGORIES[str(what)])
        else:
            low, high = what if kind is codes.RANGE else (what, what)
            found.append(f"\\U{low:08x}-\\U{high:08x}")
    return "[" + "".join(found) + "]"


@functools.lru_cache(maxsize=256)
def _asked(written: str, flags: int) -> Letters:
    """Return the characters that `re` finds in a class."""
    return Letters.of((found.start(), found.end() - 1) for found in re.finditer(written + "+", _characters(), flags))


@functools.cache
def _characters() -> str:
    return np.arange(LAST + 1, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
