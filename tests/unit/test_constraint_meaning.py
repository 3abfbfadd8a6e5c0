"""Expressions and schemas accept the same texts on text models and on canvases: those of `re` and of `jsonschema`."""

from __future__ import annotations

import json
import random
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers

from outpace import constrain
from outpace.constrain.canvas import CanvasCompiler
from outpace.constrain.canvas.automaton import DEAD, Automaton
from outpace.constrain.expression import size
from outpace.constrain.grammar import Terminal
from outpace.constrain.machine import Budget
from outpace.constrain.syntax import read_pattern
from outpace.errors import ConfigError
from outpace.text.tokenizer import Tokenizer

pytest.importorskip("llguidance")
LETTERS = [
    "a", "b", "c", "A", "k", "s", "S", "K", "é", "É", "ß", "\u017f", "\u212a", "٣", "7", "0", "_", "-", " ", "\n",
    "\u2003", "\x1c", "\b", "日", "🙂", ".", "]", "^", "\\", "{", "}", '"',
]  # fmt: skip

WRITTEN = [
    # classes, as Python reads Unicode
    r"\w", r"\W", r"\d", r"\D", r"\s", r"\S", r"\w{1,3}", r"\d+", r"\s*a", r"[\w-]+", r"[^\w]+", r"[^\W_]+",
    r"[\s\S]{2}", r"[^\s\d]+", r"[\d.]+", r".", r".*", r"(?s:.*)", r"(?s).{1,3}", r"[^\n]*", r"[a-zé]+", r"[à-ÿ]+",
    r"\x61\u00e9", r"[\x00-\x7f]*", r"\U0001F642+", r"[🙂日]+", r"\N{LATIN SMALL LETTER E WITH ACUTE}",
    r"[^\x00-\uffff]",
    # brackets
    r"[]a]+", r"[^]a]{2}", r"[][]", r"[^][]{2}", r"[a\]]{2}", r"[\^a]", r"[a^]", r"[-a]+", r"[a-]+", r"[a\-c]+",
    r"[+--]", r"[[:alpha:]]", r"[a&&b]", r"[a||b]+", r"[a~~b]", r"[.]", r"[{}]+", r"a{", r"a{,2}", r"a{2,}",
    r"a{1}b{0}", r"{a}", r"a{b}", r"]", r"}", r"[\\]", r"[\b]", r"\]", r"\-", r"\.",
    # flags
    r"(?i)k+", r"(?i)[a-k]+", r"(?i)[^k]", r"(?i)É", r"(?i)ß", r"(?i:s)S", r"(?ia)[a-k]+", r"(?a)\w+", r"(?a:\w)\w",
    r"(?a)\d", r"(?a)\s", r"(?a)[^\w]", r"(?x) a  b # c", r"(?x:a b)c", r"(?i:a(?-i:b))c", r"(?i)\w[s]", r"(?im)a$",
    r"(?s:a.)b",
    # anchors
    r"^a$", r"^a|b$", r"^(a|b)$", r"\Aa\Z", r"a^b", r"a$b", r"^", r"$", r"^$", r"(^a)+", r"(a$)+", r"(^|b)a",
    r"a(b|$)", r"a$\n", r"a$\n?", r"a$\s*", r"a\Z\n?", r"(?m)^a$", r"(?m)a$\n^b", r"(?m)(^a$\n?)*",
    r"(?m)(?:^[ab]$\n)+", r"\n^a", r"(?m)\n^", r"(?m)a$\s", r"\ba\b", r"a\b", r"a\bb", r"a\b b", r"a\b.b", r"\b",
    r"\B", r"a\B", r"a\Bb", r"\B-", r"-\b", r"\b\w+\b", r"(\ba\b ?)+", r"(\b\w+\b\W*)*", r"(a|\b-)*",
    r"(?:\b[ab]| )*", r"(?a)é\ba", r"a\bé", r"\w\b\W\b\w", r"(?:a\b|b){2,3}", r"(?:^a|b){1,2}", r"(?:a|b$){0,2}",
    r"(?:\ba){0,2}", r"a?\b", r"(\Ba|\bb)*",
    # repeats
    r"a*", r"a+?", r"a??b", r"(a|ab)(c|bcd)", r"(a*)*", r"(a*b?)+", r"(a|b|)*c", r"(a?){3}", r"(a{2}){1,2}",
    r"(a{1,2}){2}", r"(ab?){2,4}", r"([ab]{1,3} ?){1,3}", r"(a{0,2}b{0,2}){2}", r"(a|aa){3}", r"(aa|aaa){2,3}",
    r"(?:a{2,3}){2,}", r"(a+b*){2,}", r"(a|b(a|b{1,2})){1,3}", r"a{0}", r"(a{0}b)+", r"()", r"(|a)", r"(a|b)?c{2}",
    r"(?P<n>a)b", r"(?:)", r"a(?#note)b", r"(a?b?c?){2}", r"(a{1,2}-){1,2}a", r"((a|b){1,2}-?){2}", r"(a?){0,4}b",
    r"(?:(?:a{1,2}b?){1,2}c?){1,2}",
]  # fmt: skip
REFUSED = [
    (r"(a)\1", "back references"), (r"(?P<n>a)(?P=n)", "back references"), (r"(?=a)a", "looking"),
    (r"(?!a)b", "looking"), (r"(?<=a)b", "looking"), (r"(?<!a)b", "looking"), (r"(a)?(?(1)b|c)", "conditions"),
    (r"a++", "possessive"), (r"(?>a)b", "atomic"), (r"\p{L}", r"bad escape \\p"), ("(a", "unterminated"),
    ("[a", "unterminated"), ("*a", "nothing to repeat"), ("a{2,1}", "min repeat"), ("[b-a]", "bad character range"),
    ("[a--b]", "bad character range"), ("(?z)a", "unknown"), ("a(?i)b", "global flags"),
    ("(?:(?:.{999}){999}){9}", "written out"),
]  # fmt: skip


def drawn(count: int) -> list[str]:
    """Expressions of any shape, from few parts."""
    source = random.Random(11)
    parts = ["a", "b", "[ab]", r"\w", "[^a]", "c", "é", "-", " ", r"\b", "^", "$", "(?:)", "a|b", "ab|a"]

    def part(depth: int) -> str:
        kind = source.randrange(6) if depth else 0
        if kind < 2:
            return source.choice(parts[:9] if source.random() < 0.9 else parts)
        if kind == 2:
            return f"(?:{part(depth - 1)}|{part(depth - 1)})"
        if kind == 3:
            return f"(?:{part(depth - 1)}){source.choice(['*', '+', '?', '{2}', '{1,3}', '{0,2}', '{2,}'])}"
        return part(depth - 1) + part(depth - 1)

    return [part(4) for _ in range(count)]


PATTERNS = [*WRITTEN, *drawn(60)]


@pytest.fixture(scope="module")
def in_bytes() -> Tokenizer:
    """A tokenizer whose every token is one byte."""
    engine = Engine(
        models.BPE({letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    engine.decoder = decoders.ByteLevel()
    return Tokenizer(engine)


class Sides:
    """Both sides' compilers over the tokens of single bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        spelled = constrain.token_bytes(tokenizer)
        self.token = {word[0]: token for token, word in enumerate(spelled)}
        self.byte = {token: word for token, word in enumerate(spelled)}
        self.text, self.canvas = constrain.Compiler(tokenizer), CanvasCompiler(tokenizer)

    def on_text(self, constraint: constrain.Constraint, text: str) -> bool:
        state = constraint.start()
        return all(state.push(self.token[byte]) for byte in text.encode()) and state.is_complete

    def on_canvas(self, constraint: Any, text: str) -> bool:
        return bool(constraint.start().can_complete([self.token[byte] for byte in text.encode()]))


@pytest.fixture(scope="module")
def sides(in_bytes: Tokenizer) -> Sides:
    return Sides(in_bytes)


def walked(automaton: Automaton, source: random.Random, count: int) -> Iterator[str]:
    """Yield allowed texts: random ways through an automaton, then the nearest to an end."""
    favourite = [letter.encode() for letter in LETTERS]
    far = np.where(automaton.accept, 0, automaton.size)
    while (nearer := np.minimum(far, far[automaton.next].min(axis=1) + 1)).tolist() != far.tolist():
        far = nearer
    for _ in range(count):
        state, text, steps = automaton.start, b"", source.randrange(12)
        while steps > 0 or not automaton.accept[state]:
            goals = {letter: automaton.after(state, letter) for letter in favourite}
            ways = [letter for letter, goal in goals.items() if goal != DEAD]
            if not ways:
                break
            nearest = min(ways, key=lambda letter: far[goals[letter]])
            letter = source.choice(ways) if steps > 0 else nearest
            text, state, steps = text + letter, goals[letter], steps - 1
        if automaton.accept[state]:
            yield text.decode()


def near(text: str, source: random.Random) -> str:
    """Return a text with one letter changed, left out, doubled or added."""
    at, letter = source.randrange(len(text) + 1), source.choice(LETTERS)
    return source.choice(
        [text[:at] + letter + text[at + 1 :], text[:at] + text[at + 1 :], text[:at] + letter + text[at:]]
    )


@pytest.mark.parametrize("pattern", PATTERNS)
def test_expressions_accept_what_fullmatch_accepts(sides: Sides, pattern: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what later Pythons may read otherwise
        wanted = re.compile(pattern)
    source = random.Random(pattern)
    automaton = Automaton.of(Terminal((read_pattern(pattern),)))
    texts = ["", *LETTERS, *walked(automaton, source, 10)]
    texts += [near(text, source) for text in texts]
    texts += [
        "".join(source.choices(["a", "b", "c", "-", " ", "\n", "é"], k=source.randrange(2, 7))) for _ in range(30)
    ]
    texts = list(dict.fromkeys(texts))
    accepted = {text: wanted.fullmatch(text) is not None for text in texts}
    found = {text: bool(automaton.accept[automaton.after(automaton.start, text.encode())]) for text in texts}
    assert found == accepted
    if not any(text and is_accepted for text, is_accepted in accepted.items()):
        for compiler in (sides.text, sides.canvas):
            with pytest.raises(ConfigError, match=r"allows (no text at all|only the empty text)"):
                compiler.compile(regex=pattern)
        return
    on_text, on_canvas = sides.text.compile(regex=pattern), sides.canvas.compile(regex=pattern)
    for text, is_accepted in accepted.items():
        assert sides.on_text(on_text, text) == is_accepted, text
        assert sides.on_canvas(on_canvas, text) == is_accepted, text


@pytest.mark.parametrize(("pattern", "reason"), REFUSED)
def test_both_sides_refuse_an_expression_in_the_same_words(sides: Sides, pattern: str, reason: str) -> None:
    said = []
    for compiler in (sides.text, sides.canvas):
        with pytest.raises(ConfigError, match=reason) as caught:
            compiler.compile(regex=pattern)
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("pattern", "states"),
    [
        (r"([a-z]{1,20} ?){1,20}", 422),
        (r"([a-z]{1,30}[ ,.]{0,3}){1,30}", 992),
        (r"([a-z]{1,20} ?){20}", 1752),
        (r"(a|aa|aaa){50,200}", 602),
        (r"((a{1,9}b?){1,9}c?){1,9}", 821),
        (r"[!-~]{0,1000}", 1002),
    ],
)
def test_repeats_within_repeats_take_no_more_work_than_their_automaton_has_states(pattern: str, states: int) -> None:
    """Counted, not timed: the sets of positions met on the way are at most a few for each state of the result."""
    budget = Budget(most_states=100_000)
    automaton = Automaton.of(Terminal((read_pattern(pattern),)), budget)
    assert automaton.size == states
    assert budget.states <= 4 * states


@pytest.mark.parametrize("part", ["a*b?", "(((a*)*)*)*b", "[ab]?c?", "((a?b?)?c?)?", "(?:a*b*)*c"])
def test_parts_that_may_be_empty_make_no_tree_of_all_their_cases(part: str) -> None:
    sizes = [size(read_pattern(part * count)) for count in (4, 8, 12)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0]


def test_a_budget_is_held_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    node = Terminal((read_pattern(r"(\w{1,20}\s?){1,20}"),))
    with pytest.raises(ConfigError, match="needs more than 20000 states on a canvas") as caught:
        Automaton.of(node)
    assert "text model" in caught.value.hint
    ticks = iter(range(0, 10_000, 3))
    with pytest.raises(ConfigError, match="more than 60 s"):
        Automaton.of(node, Budget(most_states=10**9, clock=lambda: next(ticks)))
    assert "compiling the regular expression: " in capsys.readouterr().err


TEXTS = [
    "", "a", "ab", "abc", "aa", "b", "A", "é", "1", "-", 'q"', "\\", "/", "\n", "\x01", "a b", "🙂", "ab\n", "a" * 9,
    "2024-02-29", "2023-02-29", "2024-12-31", "2024-04-31", "2024-13-01", "2000-02-29", "1900-02-29", "0000-02-29",
    "0001-01-01", "2024-1-1", "127.0.0.1", "256.0.0.1", "1.2.3", "01.2.3.4", "::1", "1::",
    "2001:db8::8:800:200c:417a", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "1::2::3", "12345::",
    "123e4567-e89b-12d3-a456-426614174000", "123E4567-E89B-12D3-A456-42661417400", "null", "x@y.org",
]  # fmt: skip
NUMBERS = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 20, 21, 25, 49, 50, 70, 99, 100, 101, 120, 121, 125, 999, 1000,
    -1, -2, -3, -5, -10, -11, -100, 0.5, 0.25, 0.05, 1.5, 2.5, 4.999, 5.001, 9.99, 10.01, -0.5, -1.5, -2.5, -2.51,
    0.1, 0.01, 0.001, 3.14, 100.5, 123456789012345678901234567890,
]  # fmt: skip
OTHERS = [
    None, True, False, [], {}, [1], ["a"], [1, "a"], [1, 2], ["a", "a"], [1, 2, 3], [2, 3], ["a", 1], [None], [[]],
    [[1]], [1, "a", True], {"a": 1}, {"a": "x"}, {"b": 1}, {"b": "a"}, {"a": 1, "b": 2}, {"a": 1, "b": "ab"},
    {"a": None}, {"a": 1, "c": 3}, {"x_1": 1}, {"x_1": "a"}, {"y": 2}, {"a": 1, "x_1": 2}, {"": 1}, {"a\"": 1},
    {"a": {"a": 1}}, {"a": {"a": {}}}, {"a": []}, {"a": [1, 2]}, {"k": "u", "a": 1}, {"k": "v", "b": "a"}, {"k": "u"},
    {"k": "v"}, {"xy": 1}, {"next": None}, {"next": {"next": None}}, {"a": 1, "b": 2, "c": 3}, {"é": 1},
]  # fmt: skip
VALUES: list[Any] = [*TEXTS, *NUMBERS, *OTHERS]
STR, INT, NUM = {"type": "string"}, {"type": "integer"}, {"type": "number"}
SEARCHED = [
    "a", "^a", "a$", "^a$", "^a|b$", "^(a|b)$", "^[^a]*$", ".", "^.$", r"^\w+$", r"\d", r"^\S*$", r"^\s", r"\ba\b",
    "[\"\\\\]", "(?i)^a+$", "^(?s:.)$", r"^[\x00-\x1f]$", "^$", "", "^[]a]$", "a{2}", "^a*b?$",
]  # fmt: skip
BOUNDS: list[dict[str, float]] = [
    {"minimum": 5}, {"maximum": 5}, {"minimum": -2.5}, {"maximum": -2.5}, {"exclusiveMinimum": 5},
    {"exclusiveMaximum": 5}, {"minimum": 3, "maximum": 120}, {"minimum": -10, "maximum": 10},
    {"exclusiveMinimum": 0, "exclusiveMaximum": 1.5}, {"minimum": 0.05, "maximum": 1.5},
    {"minimum": 10, "exclusiveMaximum": 100.5}, {"minimum": 0}, {"maximum": 0},
    {"exclusiveMaximum": 0, "minimum": -100}, {"minimum": 0, "maximum": 0.01}, {"minimum": 100, "maximum": 1000},
    {"exclusiveMinimum": 4.999, "maximum": 5.001}, {"minimum": -0.5, "maximum": 2.5},
]  # fmt: skip
HELD: list[dict[str, Any]] = [
    {}, {"title": "x", "x-order": 1}, STR, INT, NUM, {"type": "null"}, {"type": "boolean"}, {"type": "array"},
    {"type": "object"}, {"type": ["string", "null"]}, {"type": ["integer", "number"]},
    {"type": ["number", "string", "null"]},
    # enum and const beside other keywords
    {"enum": ["a", 1, None, [1, 2], {"a": 1}]}, {"const": "a"}, {"const": 1}, {"const": {"a": 1, "b": 2}},
    {"const": True}, STR | {"enum": ["a", 1]}, {"type": ["string", "boolean"], "enum": ["a", 7, True]},
    INT | {"enum": [1.5, 3, "x", None]}, NUM | {"enum": [True, 1, 0.5]}, {"enum": ["a", "abc"], "minLength": 2},
    {"enum": [1, 5, "a"], "minimum": 2}, INT | {"const": 3}, {"enum": ["a", "b"], "const": "b"},
    {"enum": ["ab", "a"], "pattern": "b$"}, {"enum": [[1], ["a"]], "items": STR},
    {"enum": [{"a": 1}, {"b": 1}], "required": ["a"]}, {"enum": [1, True, 0, False], "type": "boolean"},
    {"enum": ["2024-02-29", "x"], "format": "date"}, {"enum": [1, 2], "allOf": [{"enum": [2, 3]}]},
    {"const": 1, "anyOf": [STR, INT]}, {"enum": ["a", 1], "$ref": "#/$defs/s", "$defs": {"s": STR}},
    # strings
    STR | {"minLength": 2}, STR | {"maxLength": 1}, STR | {"minLength": 1, "maxLength": 2}, {"minLength": 2},
    {"maxLength": 1}, STR | {"maxLength": 0},
    *(STR | {"pattern": pattern} for pattern in SEARCHED),
    STR | {"pattern": "^a", "maxLength": 2}, STR | {"pattern": "a", "minLength": 3}, {"pattern": "^a"},
    {"pattern": "a", "allOf": [{"pattern": "b"}]},
    *(STR | {"format": name} for name in ("date", "uuid", "ipv4", "ipv6")), STR | {"format": "date", "pattern": "^20"},
    {"format": "date"},
    # numbers
    *(kind | bounds for kind in (INT, NUM) for bounds in BOUNDS),
    {"minimum": 5}, {"maximum": 2, "type": ["integer", "string"]},
    {"minimum": 1, "allOf": [{"minimum": 3}, {"maximum": 9}]},
    *(INT | {"multipleOf": number} for number in (1, 2, 3, 5, 7, 10, 25)),
    INT | {"multipleOf": 5, "minimum": 10, "maximum": 50}, NUM | {"multipleOf": 2},
    # arrays
    {"type": "array", "items": INT}, {"items": STR}, {"type": "array", "minItems": 1}, {"type": "array", "maxItems": 1},
    {"type": "array", "minItems": 2, "maxItems": 2}, {"type": "array", "prefixItems": [INT, STR]},
    {"type": "array", "prefixItems": [INT, STR], "items": False}, {"type": "array", "prefixItems": [INT], "items": STR},
    {"type": "array", "prefixItems": [INT, STR], "minItems": 2},
    {"type": "array", "prefixItems": [INT, STR, {}], "maxItems": 2}, {"type": "array", "items": False},
    {"type": "array", "prefixItems": [INT, False]},
    {"type": "array", "items": {"enum": [1, "a"]}, "minItems": 1, "uniqueItems": False},
    {"type": "array", "items": INT, "allOf": [{"minItems": 1}, {"items": {"minimum": 2}}]},
    {"type": "array", "maxItems": 0},
    # objects
    {"type": "object", "properties": {"a": INT}}, {"type": "object", "properties": {"a": INT}, "required": ["a"]},
    {"properties": {"a": INT, "b": STR}, "required": ["b"]},
    {"type": "object", "properties": {"a": INT, "b": STR}, "additionalProperties": False},
    {"type": "object", "additionalProperties": INT}, {"type": "object", "required": ["a", "b"]},
    {"type": "object", "properties": {"a": INT}, "additionalProperties": STR},
    {"type": "object", "properties": {"a": {}}, "required": ["c"], "additionalProperties": INT},
    {"type": "object", "properties": {"a": False}}, {"type": "object", "patternProperties": {"^x_": INT}},
    {"type": "object", "patternProperties": {"^x": INT}, "additionalProperties": False},
    {"type": "object", "minProperties": 1}, {"type": "object", "maxProperties": 1},
    {"type": "object", "patternProperties": {"^x": INT, "y$": {"minimum": 2}}, "additionalProperties": STR},
    {"type": "object", "properties": {"x_1": STR}, "patternProperties": {"^x": {"minLength": 1}}},
    {"type": "object", "additionalProperties": False},
    {"type": "object", "allOf": [{"properties": {"a": INT}}, {"properties": {"a": {"minimum": 1}, "b": STR}},
     {"required": ["a"]}]},
    # branches and references
    {"anyOf": [STR, INT]}, {"anyOf": [{"const": 1}, {"const": 12}, STR]}, {"oneOf": [STR, INT]},
    {"oneOf": [{"const": "a"}, {"const": "b"}, {"type": "null"}]},
    {"oneOf": [INT | {"maximum": 3}, INT | {"minimum": 4}]},
    {"oneOf": [{"properties": {"k": {"const": "u"}, "a": INT}, "required": ["k"], "type": "object"},
     {"properties": {"k": {"const": "v"}, "b": STR}, "required": ["k"], "type": "object"}]},
    {"anyOf": [STR, INT], "minimum": 3}, {"anyOf": [{"minLength": 2}, {"pattern": "^b"}], "type": "string"},
    {"allOf": [STR, {"minLength": 1}, {"anyOf": [{"maxLength": 1}, {"pattern": "^ab"}]}]}, {"allOf": [True, INT]},
    {"anyOf": [False, INT]}, {"$ref": "#/$defs/s", "$defs": {"s": STR}},
    {"$ref": "#/$defs/s", "minLength": 2, "$defs": {"s": STR}},
    {"$ref": "#word", "$defs": {"w": STR | {"$anchor": "word"}}}, {"$ref": "#/$defs/a~1b", "$defs": {"a/b": INT}},
    {"$id": "https://example.org/root", "$ref": "part", "$defs": {"p": {"$id": "part", "type": "string",
     "maxLength": 1}}},
    {"items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"anyOf": [INT, {"type": "array",
     "items": {"$ref": "#/$defs/n"}}]}}},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False},
    {"oneOf": [{"type": "null"}, {"properties": {"a": {"$ref": "#"}}, "type": "object"}], "minLength": 1},
    {"type": "object", "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}, "required": ["next"]},
    # of older drafts
    {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 5, "exclusiveMinimum": True, "maximum": 9},
    {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "maximum": 9,
     "exclusiveMaximum": True},
    {"$schema": "http://json-schema.org/draft-07/schema#", "items": [INT, STR], "additionalItems": False},
    {"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/definitions/s", "minLength": 2,
     "definitions": {"s": STR}},
    {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 5, "exclusiveMinimum": False},
]  # fmt: skip


def test_the_lists_are_long_enough() -> None:
    assert len(set(PATTERNS)) >= 200 and len({json.dumps(schema) for schema in HELD}) >= 150


def arranged(value: Any, schema: dict[str, Any]) -> Any:
    """Return a value with the properties that a schema names first, in its order."""
    if not isinstance(value, dict):
        return value
    parts = [part for part in (schema, *schema.get("allOf", ()), *schema.get("oneOf", ())) if isinstance(part, dict)]
    named = [name for key in ("properties", "required") for part in parts for name in part.get(key, ())]
    return {name: value[name] for name in dict.fromkeys([*named, *value]) if name in value}


@pytest.mark.parametrize("schema", HELD, ids=json.dumps)
def test_schemas_accept_the_values_that_meet_them(sides: Sides, schema: dict[str, Any]) -> None:
    """Both ways: no other value has a text, and each value has one in the order of the schema's own properties."""
    jsonschema = pytest.importorskip("jsonschema")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER)
    on_text, on_canvas = sides.text.compile(json_schema=schema), sides.canvas.compile(json_schema=schema)
    met = 0
    for value in VALUES:
        is_met, text = validator.is_valid(value), json.dumps(arranged(value, schema), ensure_ascii=False)
        if is_met and isinstance(value, str) and value.endswith("\n") and "$" in schema.get("pattern", ""):
            continue  # there `$` is the end alone
        met += is_met
        assert sides.on_text(on_text, text) == is_met, text
        assert sides.on_canvas(on_canvas, text) == is_met, text
    assert met
    source = random.Random(json.dumps(schema))
    for _ in range(4):
        text = ramble(sides, on_text, source)
        if text is not None:
            assert validator.is_valid(json.loads(text)), text
            assert sides.on_canvas(on_canvas, text), text


def ramble(sides: Sides, constraint: constrain.Constraint, source: random.Random) -> str | None:
    """Return a random allowed text in ASCII, or None if it grew too long."""
    state, written = constraint.start(), b""
    for _ in range(60):
        allowed = [token for token in state.allowed().nonzero().flatten().tolist() if sides.byte[token] < b"\x7f"]
        if state.is_complete and (not allowed or source.random() < 0.4):
            return written.decode()
        if not allowed:
            return None
        closing = [token for token in allowed if sides.byte[token] in b'"]}']
        token = source.choice(closing if closing and source.random() < 0.5 else allowed)
        state.push(token)
        written += sides.byte[token]
    return None


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (STR | {"const": 1}, "allows no text at all"),
        (STR | {"minLength": 3, "maxLength": 2}, "allows no text at all"),
        (STR | {"minLength": 3, "pattern": "^ab?$"}, "allows no text at all"),
        (INT | {"minimum": 3, "maximum": 2}, "allows no text at all"),
        (INT | {"minimum": 0.1, "maximum": 0.9}, "allows no text at all"),
        (INT | {"multipleOf": 7, "minimum": 8, "maximum": 13}, "allows no text at all"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "allows no text at all"),
        ({"type": "array", "minItems": 1, "items": False}, "allows no text at all"),
        ({"enum": []}, "allows no text at all"),
        ({"allOf": [STR, INT]}, "allows no text at all"),
        ({"type": "object", "required": ["b"], "additionalProperties": False}, "allows no text at all"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "comes to an end"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "comes to an end"),
        ({"$ref": "#"}, "in a circle"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [STR, {"$ref": "#/$defs/a"}]}}}, "in a circle"),
        ({"$ref": "#/$defs/a"}, "not in it"),
        ({"$ref": "#a"}, "not in it"),
        ({"$ref": "https://example.org/a"}, "is not known"),
        ({"$dynamicRef": "#a"}, "dynamicRef is not known"),
        ({"oneOf": [INT, NUM]}, "may hold together"),
        ({"oneOf": [{"properties": {"a": INT}}, {"properties": {"b": INT}}]}, "may hold together"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems is not known"),
        ({"not": STR}, "not is not known"),
        ({"if": STR, "then": STR}, "if is not known"),
        ({"type": "object", "dependentRequired": {}}, "dependentRequired is not known"),
        ({"type": "array", "contains": STR}, "contains is not known"),
        ({"type": "text"}, "type: text is not known"),
        ({"format": "regex"}, "format: regex is not known"),
        (INT | {"multipleOf": 13}, "multipleOf: 13 is not known"),
        (INT | {"minimum": True}, "minimum: True is not known"),
        (STR | {"minLength": -1}, "minLength: -1 is not known"),
        (STR | {"pattern": r"(a)\1"}, "back references"),
        ({"items": {"type": "array", "items": 3}}, "a schema that is int"),
        ({"x-guidance": {"lenient": True}}, "x-guidance: lenient"),
        ({"type": [["string"]]}, "type: ['string']"),
        ({"minItems": float("inf")}, "minItems: inf"),
        ({"minimum": float("nan")}, "minimum: nan"),
        ({"enum": ["a"], "format": ["date"]}, "format: ['date']"),
        ({"required": "a"}, "required: a"),
        ({"const": {1, 2}}, "not JSON"),
    ],
    ids=str,
)
def test_both_sides_refuse_a_schema_in_the_same_words(sides: Sides, schema: dict[str, Any], reason: str) -> None:
    said = []
    for compiler in (sides.text, sides.canvas):
        with pytest.raises(ConfigError, match=re.escape(reason)) as caught:
            compiler.compile(json_schema=schema)
        said.append((str(caught.value), caught.value.hint))
    assert said[0] == said[1] and said[0][0].endswith(".")


def test_an_alternative_that_cannot_end_is_left_out(sides: Sides) -> None:
    schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {"a": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/n"}}},
        "$defs": {"n": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/n"}}},
    }  # fmt: skip
    for compiler, accepts in ((sides.text, sides.on_text), (sides.canvas, sides.on_canvas)):
        constraint = compiler.compile(json_schema=schema)
        assert accepts(constraint, "{}")
        state = constraint.start()
        state.push(sides.token[ord("{")])
        allowed = state.allowed() if compiler is sides.text else state.allowed([None], 0)
        assert allowed.nonzero().flatten().tolist() == [sides.token[ord("}")]]


@pytest.mark.parametrize(
    ("schema", "texts", "others"),
    [
        (NUM | {"multipleOf": 0.01}, ["3.14", "3.140", "-0.5", "7"], ["3.141", "1e2", "3."]),
        ({"x-guidance": {"whitespace_flexible": True}, "items": INT}, ["[1,2]", "[ 1 ,\n2 ]"], ["[1 2]", "[a]"]),
        ({"x-guidance": {"item_separator": ",", "key_separator": ":"}}, ['{"a":1,"b":2}', "[1,2]"], ["[1, 2]"]),
        ({"x-guidance": {"coerce_one_of": True}, "oneOf": [INT, NUM]}, ["1", "1.5"], ["true"]),
        (STR, ['"\\n"', '"\\u0001"'], ['"\\u0041"', '"\\/"', '"\n"']),
    ],
    ids=str,
)
def test_spellings(sides: Sides, schema: dict[str, Any], texts: list[str], others: list[str]) -> None:
    for compiler, accepts in ((sides.text, sides.on_text), (sides.canvas, sides.on_canvas)):
        constraint = compiler.compile(json_schema=schema)
        assert [accepts(constraint, text) for text in texts + others] == [True] * len(texts) + [False] * len(others)
