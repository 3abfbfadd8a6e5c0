"""Expressions for the values of JSON: strings in their one shortest spelling, numbers within bounds, formats."""

from __future__ import annotations

import functools
from decimal import Decimal

from outpace.constrain.expression import (
    EMPTY,
    LAST,
    NOTHING,
    Alternation,
    Chain,
    Letters,
    Node,
    any_of,
    chain,
    choice,
    repeat,
    word,
)
from outpace.constrain.syntax import read_pattern

__all__ = [
    "FORMATS",
    "INTEGER",
    "NUMBER",
    "STRING",
    "above",
    "below",
    "digits_after",
    "format_node",
    "multiples",
    "of_length",
    "quoted",
]

_DIGIT, _SOME = any_of("0123456789"), any_of("123456789")
_DIGITS = repeat(_DIGIT, 0, None)
_MAYBE_MINUS = repeat(any_of("-"), 0, 1)
_NATURAL = choice((any_of("0"), chain((_SOME, _DIGITS))))
_FRACTION = chain((any_of("."), repeat(_DIGIT, 1, None)))
_EXPONENT = chain((any_of("eE"), repeat(any_of("+-"), 0, 1), repeat(_DIGIT, 1, None)))
INTEGER = chain((_MAYBE_MINUS, _NATURAL))
NUMBER = chain((INTEGER, repeat(_FRACTION, 0, 1), repeat(_EXPONENT, 0, 1)))


_SHORT = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}


def _spelling(letters: Letters) -> Node:
    """Return how JSON spells the characters of a set, each in one way: as `json.dumps` does without `ensure_ascii`."""
    found: list[Node] = [letters & _PLAIN]
    found.append(chain((any_of("\\"), any_of("".join(short for letter, short in _SHORT.items() if letter in letters)))))
    for high in "01":
        lows = [low for low in "0123456789abcdef" if chr(int(high + low, 16)) in letters & _CONTROL]
        found.append(chain((word(f"\\u00{high}"), any_of("".join(lows)))))
    return choice(part for part in found if part != Letters(()))


_CONTROL = Letters.of([(0, 0x1F)]) & ~any_of("".join(_SHORT))
_PLAIN = Letters.of([(0x20, LAST)]) & ~any_of("".join(_SHORT))
_CHARACTER = _spelling(Letters.of([(0, LAST)]))


@functools.lru_cache(maxsize=256)
def quoted(node: Node) -> Node:
    """Return the JSON strings whose value matches an expression."""
    return chain((any_of('"'), _inside(node), any_of('"')))


def _inside(node: Node) -> Node:
    if isinstance(node, Letters):
        return _spelling(node)
    if isinstance(node, Chain):
        return chain(map(_inside, node.parts))
    if isinstance(node, Alternation):
        return choice(map(_inside, node.parts))
    return repeat(_inside(node.part), node.least, node.most)


def of_length(least: int, most: int | None) -> Node:
    """Return the JSON strings of some lengths, in characters."""
    return chain((any_of('"'), repeat(_CHARACTER, least, most), any_of('"')))


STRING = of_length(0, None)


def above(bound: Decimal, is_strict: bool) -> Node:
    """Return the numbers, without exponents, from a bound on; the bound itself only if not strict."""
    if bound < 0:
        return choice((chain((any_of("-"), _at_most(-bound, is_strict))), _at_least(Decimal(0), False)))
    return _at_least(bound, is_strict)


def below(bound: Decimal, is_strict: bool) -> Node:
    """Return the numbers, without exponents, up to a bound; the bound itself only if not strict."""
    if bound < 0 or (bound == 0 and is_strict):
        return chain((any_of("-"), _at_least(-bound, is_strict)))
    return choice((chain((any_of("-"), _at_least(Decimal(0), False))), _at_most(bound, is_strict)))


def _halves(bound: Decimal) -> tuple[str, str]:
    """Return the digits of a bound >= 0 before and behind its point, without needless zeros."""
    whole, _, fraction = format(bound, "f").partition(".")
    return whole.lstrip("0"), fraction.rstrip("0")


def _at_least(bound: Decimal, is_strict: bool) -> Node:
    whole, fraction = _halves(bound)
    any_fraction, point = repeat(_FRACTION, 0, 1), any_of(".")
    more = chain((_SOME, repeat(_DIGIT, len(whole), None)))  # longer numbers
    larger = chain((choice((more, *_differing(whole, is_larger=True, is_whole=True))), any_fraction))
    ways = [chain((point, part, _DIGITS)) for part in _differing(fraction, is_larger=True)]
    rest: Node = _DIGITS
    if is_strict:  # something that is not zero has to follow
        rest = chain((repeat(any_of("0"), 0, None), _SOME, _DIGITS))
    exact = chain((point, word(fraction), rest if fraction or is_strict else repeat(_DIGIT, 1, None)))
    same = choice((*ways, exact, *(() if fraction or is_strict else (EMPTY,))))
    return choice((larger, chain((word(whole or "0"), same))))


def _at_most(bound: Decimal, is_strict: bool) -> Node:
    whole, fraction = _halves(bound)
    any_fraction, point, zeros = repeat(_FRACTION, 0, 1), any_of("."), repeat(any_of("0"), 0, None)
    fewer: list[Node] = []
    if whole:
        fewer = [any_of("0"), *([chain((_SOME, repeat(_DIGIT, 0, len(whole) - 2)))] if len(whole) > 1 else [])]
    smaller = chain((choice((*fewer, *_differing(whole, is_larger=False, is_whole=True))), any_fraction))
    ways: list[Node] = [chain((point, part, _DIGITS)) for part in _differing(fraction, is_larger=False)]
    ways += [chain((point, word(fraction[:end]))) for end in range(1, len(fraction))]
    if fraction:
        ways.append(EMPTY)
    if not is_strict:
        ways.append(chain((point, word(fraction), zeros)) if fraction else chain((point, any_of("0"), zeros)))
        ways += [] if fraction else [EMPTY]
    return choice((smaller, chain((word(whole or "0"), choice(ways)))))


def _differing(digits: str, *, is_larger: bool, is_whole: bool = False) -> list[Node]:
    """Return the ways to differ from digits at one place, to one side; the rest of whole numbers has its length."""
    found = []
    for at, digit in enumerate(digits):
        others = "0123456789"[int(digit) + 1 :] if is_larger else "0123456789"[: int(digit)]
        others = others.lstrip("0") if is_whole and at == 0 else others
        rest = repeat(_DIGIT, len(digits) - at - 1, len(digits) - at - 1) if is_whole else EMPTY
        found.append(chain((word(digits[:at]), any_of(others) if others else NOTHING, rest)))
    return found


def digits_after(count: int) -> Node:
    """Return the numbers, without exponents, with at most some digits behind the point, zeros apart."""
    zeros = repeat(any_of("0"), 0, None)
    some = chain((any_of("."), repeat(_DIGIT, 1, count), zeros)) if count else chain((any_of("."), any_of("0"), zeros))
    return chain((INTEGER, repeat(some, 0, 1)))


def multiples(number: int) -> list[Node] | None:
    """Return expressions that hold together for the multiples of a number, or None if they grow too large."""
    rest = number
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    tail, found = number // rest, list[Node]()
    places = next((places for places in range(4) if 10**places % tail == 0), None)
    if places is None or rest not in (1, 3, 7):
        return None
    if tail > 1:  # the last digits tell
        endings = range(0, 10**places, tail)
        long = chain((_SOME, _DIGITS, choice(word(f"{ending:0{places}}") for ending in endings)))
        found.append(chain((_MAYBE_MINUS, choice((*(word(str(ending)) for ending in endings), long)))))
    if rest > 1:
        found.append(chain((_MAYBE_MINUS, _remainders(rest))))
    return found


def _remainders(divisor: int) -> Node:
    """Return the digits of multiples of a small number: walks over its remainders, taken out one by one (Kleene)."""
    steps: dict[tuple[int, int], Node] = {}
    for state in range(divisor):
        for digit in range(10):
            goal = (10 * state + digit) % divisor
            steps[state, goal] = choice((steps.get((state, goal), NOTHING), any_of(str(digit))))
    for through in reversed(range(1, divisor)):
        around = repeat(steps.get((through, through), NOTHING), 0, None)
        for start in range(through):
            for goal in range(through):
                detour = chain((steps.get((start, through), NOTHING), around, steps.get((through, goal), NOTHING)))
                steps[start, goal] = choice((steps.get((start, goal), NOTHING), detour))
    return repeat(steps[0, 0], 1, None)


_FOURTH = "(?:0[48]|[2468][048]|[13579][26])"  # of years or centuries, those with a leap day
_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"  # from 0001 on
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
    f"|(?:[0-9]{{2}}{_FOURTH}|{_FOURTH}00)-02-29)"
)
_HOUR = "(?:[01][0-9]|2[0-3])"
_TIME = rf"{_HOUR}:[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:Z|[+-]{_HOUR}:[0-5][0-9])"
_HEX, _LABEL = "[0-9a-fA-F]", "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_GROUP = f"{_HEX}{{1,4}}"
_SHORTENED = "|".join(
    (f"{_GROUP}(?::{_GROUP}){{{before - 1}}}" if before else "")
    + "::"
    + f"(?:{_GROUP}(?::{_GROUP}){{0,{6 - before}}})?"
    for before in range(7)
)
_NAMED = "[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]+"
_IN_URI = r"(?:[a-zA-Z0-9._~:@!$&'()*+,;=/-]|%[0-9a-fA-F]{2})"
_CLOCK = "T(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DAYS = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"

# By format, an expression in Python's syntax.
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P(?:{_DAYS}(?:{_CLOCK})?|{_CLOCK}|[0-9]+W)",
    "uuid": f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}",
    "hostname": rf"{_LABEL}(?:\.{_LABEL})*",
    "email": rf"{_NAMED}(?:\.{_NAMED})*@{_LABEL}(?:\.{_LABEL})*",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": f"(?:{_GROUP}:){{7}}{_GROUP}|{_GROUP}(?::{_GROUP}){{0,6}}::|{_SHORTENED}",
    "uri": rf"[a-zA-Z][a-zA-Z0-9+.-]*:{_IN_URI}+(?:\?(?:{_IN_URI}|\?)*)?(?:#(?:{_IN_URI}|\?)*)?",
}


@functools.cache
def format_node(name: str) -> Node:
    """Return the JSON strings of a format."""
    return quoted(read_pattern(FORMATS[name], "format"))
