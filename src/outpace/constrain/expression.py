"""Regular expressions as trees: the one form that every expression and every JSON schema is brought into.

Letters are sets of code points; anchors, flags and escapes are gone (see `outpace.constrain.syntax`). What a text
model's library and a canvas's automata read is made from the same tree, so that both accept the same texts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "EMPTY", "LAST", "NOTHING", "Alternation", "Chain", "Letters", "Node", "Repeat", "any_of", "chain", "choice",
    "edge_in", "is_nullable", "matches_letter", "nonempty", "repeat", "size", "to_rust", "word",
]  # fmt: skip

LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)  # halves of pairs are no text


@dataclass(frozen=True, slots=True)
class Letters:
    """One character of a set.

    Attributes:
        ranges: first and last code point of each run, in order, with gaps between.
    """

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Letters:
        """Return the set of some runs in any order, without surrogates."""
        low, high = _SURROGATES
        found: list[tuple[int, int]] = []
        for first, last in sorted(ranges):
            for start, stop in ((first, min(last, low - 1)), (max(first, high + 1), last)):
                if start > stop:
                    continue
                if found and start <= found[-1][1] + 1:
                    found[-1] = (found[-1][0], max(found[-1][1], stop))
                else:
                    found.append((start, stop))
        return cls(tuple(found))

    def __invert__(self) -> Letters:
        """Return all other characters."""
        edges = [-1, *(edge for run in self.ranges for edge in run), LAST + 1]
        return Letters.of((edges[at] + 1, edges[at + 1] - 1) for at in range(0, len(edges), 2))

    def __and__(self, other: Letters) -> Letters:
        """Return the characters of both."""
        found, mine, theirs = [], list(self.ranges), list(other.ranges)
        while mine and theirs:
            low, high = max(mine[0][0], theirs[0][0]), min(mine[0][1], theirs[0][1])
            if low <= high:
                found.append((low, high))
            (mine if mine[0][1] < theirs[0][1] else theirs).pop(0)
        return Letters.of(found)

    def __contains__(self, letter: str) -> bool:
        """Return whether a character is in the set."""
        return any(low <= ord(letter) <= high for low, high in self.ranges)


@dataclass(frozen=True, slots=True)
class Chain:
    """Some parts, one behind the other; none = the empty text."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alternation:
    """Any one of some parts; none = no text."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A part `least` to `most` times; None = without end."""

    part: Node
    least: int
    most: int | None


Node = Letters | Chain | Alternation | Repeat
EMPTY, NOTHING = Chain(()), Alternation(())


def any_of(letters: str) -> Letters:
    """Return the set of some characters."""
    return Letters.of((ord(letter), ord(letter)) for letter in letters)


def word(text: str) -> Node:
    """Return the expression of one text."""
    return chain(any_of(letter) for letter in text)


def chain(parts: Iterable[Node]) -> Node:
    """Return some parts, one behind the other."""
    flat: list[Node] = []
    for part in parts:
        if _is_nothing(part):
            return NOTHING
        flat += part.parts if isinstance(part, Chain) else (part,)
    return flat[0] if len(flat) == 1 else Chain(tuple(flat))


def choice(parts: Iterable[Node]) -> Node:
    """Return any one of some parts; single characters are joined into one set."""
    flat: dict[Node, None] = {}
    for part in parts:
        flat |= dict.fromkeys(part.parts if isinstance(part, Alternation) else (part,))
    letters = [part for part in flat if isinstance(part, Letters)]
    others: list[Node] = [part for part in flat if not isinstance(part, Letters)]
    joined = Letters.of(run for part in letters for run in part.ranges)
    found = [joined, *others] if joined.ranges else others
    return found[0] if len(found) == 1 else Alternation(tuple(found))


def repeat(part: Node, least: int, most: int | None) -> Node:
    """Return a part `least` to `most` times; what is repeated never matches the empty text."""
    if is_nullable(part):
        part, least = nonempty(part), 0
    if _is_nothing(part):
        return NOTHING if least else EMPTY
    if most == 0:
        return EMPTY
    return part if (least, most) == (1, 1) else Repeat(part, least, most)


def _is_nothing(node: Node) -> bool:
    return node == NOTHING or (isinstance(node, Letters) and not node.ranges)


@functools.lru_cache(maxsize=1 << 14)
def is_nullable(node: Node) -> bool:
    """Return whether the empty text matches."""
    if isinstance(node, Chain):
        return all(map(is_nullable, node.parts))
    if isinstance(node, Alternation):
        return any(map(is_nullable, node.parts))
    return isinstance(node, Repeat) and (node.least == 0 or is_nullable(node.part))


@functools.lru_cache(maxsize=1 << 12)
def nonempty(node: Node) -> Node:
    """Return the matches of a node that are not empty."""
    if isinstance(node, Repeat) and node.least == 0 and not is_nullable(node.part):
        return repeat(node.part, 1, node.most)
    return edge_in(node, Letters(((0, LAST),)), is_first=True) if is_nullable(node) else node


def edge_in(node: Node, letters: Letters, is_first: bool) -> Node:
    """Return the matches that begin (or end) with a character of a set."""
    if isinstance(node, Letters):
        return node & letters
    if isinstance(node, Alternation):
        return choice(edge_in(part, letters, is_first) for part in node.parts)
    if isinstance(node, Repeat):
        part, least = (nonempty(node.part), 0) if is_nullable(node.part) else (node.part, node.least)
        rest = repeat(part, max(least - 1, 0), None if node.most is None else node.most - 1)
        edge = edge_in(part, letters, is_first)
        return chain((edge, rest) if is_first else (rest, edge))
    found, parts = [], list(node.parts)
    while parts:
        edge = edge_in(parts[0 if is_first else -1], letters, is_first)
        found.append(chain((edge, *parts[1:]) if is_first else (*parts[:-1], edge)))
        if not is_nullable(parts.pop(0 if is_first else -1)):
            break
    return choice(found)


def matches_letter(node: Node, letter: str) -> bool:
    """Return whether one character, alone, matches."""
    if isinstance(node, Letters):
        return letter in node
    if isinstance(node, Alternation):
        return any(matches_letter(part, letter) for part in node.parts)
    if isinstance(node, Repeat):
        return matches_letter(node.part, letter) and (node.least <= 1 or is_nullable(node.part)) and node.most != 0
    return any(
        matches_letter(part, letter) and all(is_nullable(other) for other in node.parts[:at] + node.parts[at + 1 :])
        for at, part in enumerate(node.parts)
    )


def size(node: Node) -> int:
    """Return the number of characters that an expression names, repeats written out."""
    if isinstance(node, Letters):
        return 1
    if isinstance(node, Repeat):
        return size(node.part) * max(node.least, node.most or 1, 1)
    return sum(map(size, node.parts))


def to_rust(node: Node) -> str:
    """Return the expression in the syntax of Rust's `regex`, each set of characters written out."""
    if isinstance(node, Letters):
        if not node.ranges:
            return r"[^\x{0}-\x{10FFFF}]"
        return "[" + "".join(_run(low, high) for low, high in node.ranges) + "]"
    if isinstance(node, Chain):
        return "".join(map(_part, node.parts)) or "(?:)"
    if isinstance(node, Alternation):
        return "|".join(map(_part, node.parts)) or to_rust(Letters(()))
    counts = {(0, None): "*", (1, None): "+", (0, 1): "?"}
    least, most = node.least, node.most
    return _part(node.part, is_single=True) + counts.get(
        (least, most), f"{{{least},{'' if most is None else most}}}" if least != most else f"{{{least}}}"
    )


def _part(node: Node, is_single: bool = False) -> str:
    needs_group = isinstance(node, Alternation) or (is_single and not isinstance(node, Letters))
    return f"(?:{to_rust(node)})" if needs_group else to_rust(node)


def _run(low: int, high: int) -> str:
    return _letter(low) if low == high else f"{_letter(low)}-{_letter(high)}"


def _letter(code: int) -> str:
    return chr(code) if code < 0x80 and chr(code).isalnum() else f"\\x{{{code:X}}}"
