"""Constraints on a canvas against every completion of tiny canvases, and against parsers on random ones."""

from __future__ import annotations

import functools
import itertools
import json
import random
import re
from collections.abc import Callable, Sequence

import pytest
import torch
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Engine

from outpace.constrain.canvas import CanvasCompiler, CanvasConstraint, CanvasConstraintState, compile_canvas
from outpace.constrain.canvas.contextfree import ContextFreeConstraint
from outpace.constrain.canvas.regular import RegularConstraint, RegularState
from outpace.errors import ConfigError
from outpace.text.tokenizer import Tokenizer
from outpace.zoo import path

lark = pytest.importorskip("lark")

MATCHING = 'start: "(" start ")" start |'
SUMS = "start: start /[+]/ item | item\nitem: /[01]/+ | /[(]/ start /[)]/"
PALINDROMES = 'start: "0" start "0" | "1" start "1" | "+"'
JSON = r"""
start: value
?value: object | array | STRING | NUMBER | "true" | "false" | "null"
object: "{" [pair ("," pair)*] "}"
pair: STRING ":" value
array: "[" [value ("," value)*] "]"
STRING: /"([^"\\\x00-\x1f]|\\["\\\/bfnrt])*"/
NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?/
%ignore /[ \t]+/
"""


def tiny(tokens: Sequence[str]) -> Tokenizer:
    """A byte-level tokenizer of these tokens, then an end token and a mask."""
    engine = Engine(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken("<end>", special=True), AddedToken("<mask>", special=True)])
    return Tokenizer(engine)


class Enumerated:
    """Every canvas of a length over a vocabulary, with where its text ends (None = not allowed)."""

    def __init__(self, tokens: Sequence[str], length: int, is_allowed: Callable[[str], bool], has_end: bool) -> None:
        self.end, self.size = len(tokens), len(tokens) + 2
        self.ends = (self.end,) if has_end else ()
        self.found: list[tuple[tuple[int, ...], int]] = []
        for canvas in itertools.product(range(self.size), repeat=length):
            stop = canvas.index(self.end) if self.ends and self.end in canvas else length
            if all(token < len(tokens) for token in canvas[:stop]):
                if is_allowed("".join(tokens[token] for token in canvas[:stop])):
                    self.found.append((canvas, stop))

    def completions(self, canvas: Sequence[int | None]) -> list[tuple[tuple[int, ...], int]]:
        return [
            (full, stop)
            for full, stop in self.found
            if all(token is None or token == full[place] for place, token in enumerate(canvas))
        ]

    def allowed(self, canvas: Sequence[int | None], place: int) -> list[bool]:
        found = self.completions(canvas)
        if any(token in self.ends for token in canvas[:place]):
            return [bool(found)] * self.size
        allowed = [False] * self.size
        for full, stop in found:
            if stop > place:
                allowed[full[place]] = True
            elif self.ends:
                allowed[self.end] = True
        return allowed


def canvases(source: Enumerated, length: int, count: int) -> list[list[int | None]]:
    """Random partly masked canvases: parts of allowed ones, and some of anything."""
    chance = random.Random(length)
    found: list[list[int | None]] = [[None] * length]
    for number in range(count):
        whole = chance.choice(source.found)[0] if number % 4 else chance.choices(range(source.size), k=length)
        share = chance.random()
        found.append([token if chance.random() < share else None for token in whole])
    return found


REGULAR = [
    ("a(b|ab)*c?", "abc", ["ab", "bc"], 5, True),
    ("(ab)*", "ab", ["ba", "aba"], 5, True),
    ("(ab)*", "ab", ["ba", "aba"], 4, False),
    ("a{2,4}|b", "ab", ["aa"], 5, True),
]


@pytest.mark.parametrize(("pattern", "letters", "more", "length", "has_end"), REGULAR)
def test_regular_constraints_know_every_completion(
    pattern: str, letters: str, more: list[str], length: int, has_end: bool
) -> None:
    tokens = [*letters, *more]
    source = Enumerated(tokens, length, lambda text: re.fullmatch(pattern, text) is not None, has_end)
    constraint = compile_canvas(tiny(tokens), regex=pattern, end_tokens=source.ends)
    for canvas in canvases(source, length, 40):
        state = constraint.start()
        assert state.can_complete(canvas) == bool(source.completions(canvas))
        for place in range(length):
            if canvas[place] is None:
                assert state.allowed(canvas, place).tolist() == source.allowed(canvas, place), (canvas, place)


@pytest.mark.parametrize(("pattern", "letters", "more", "length", "has_end"), REGULAR)
def test_the_best_completion_is_the_most_likely(
    pattern: str, letters: str, more: list[str], length: int, has_end: bool
) -> None:
    tokens = [*letters, *more]
    source = Enumerated(tokens, length, lambda text: re.fullmatch(pattern, text) is not None, has_end)
    state = compile_canvas(tiny(tokens), regex=pattern, end_tokens=source.ends).start()
    assert isinstance(state, RegularState)
    noise = torch.Generator().manual_seed(3)
    for canvas in canvases(source, length, 30):
        log_probs = torch.randn(length, source.size, generator=noise, dtype=torch.float64).log_softmax(-1)

        def score(full: Sequence[int], stop: int, canvas: list = canvas, law: torch.Tensor = log_probs) -> float:
            places = [place for place in range(min(stop + 1, length)) if canvas[place] is None]
            return float(sum(law[place, full[place]] for place in places))

        found = source.completions(canvas)
        best = state.best(canvas, log_probs)
        if not found:
            assert best is None
            continue
        assert best is not None
        stop = best.index(source.end) if source.end in best else length
        assert any(full[: stop + 1] == tuple(best[: stop + 1]) for full, _ in found)
        assert score(best, stop) == pytest.approx(max(score(*each) for each in found), abs=1e-9)


def counts(text: str) -> bool:
    depth = 0
    for letter in text:
        depth += 1 if letter == "(" else -1
        if depth < 0:
            return False
    return depth == 0


@functools.cache
def summing() -> lark.Lark:
    return lark.Lark(SUMS, lexer="dynamic_complete")


@functools.cache
def is_sum(text: str) -> bool:
    try:
        summing().parse(text)
    except lark.exceptions.LarkError:
        return False
    return True


def mirrors(text: str) -> bool:
    half = len(text) // 2
    return len(text) % 2 == 1 and text == text[::-1] and text[half] == "+" and "+" not in text[:half]


CONTEXT_FREE = [
    (MATCHING, "()", ["()", ")("], 5, counts, True),
    (MATCHING, "()", ["()", ")("], 4, counts, False),
    (PALINDROMES, "01+", ["0+", "10"], 5, mirrors, True),
    (SUMS, "01+()", ["0+", "00"], 4, is_sum, True),
]


@pytest.mark.parametrize(("grammar", "letters", "more", "length", "is_allowed", "has_end"), CONTEXT_FREE)
def test_grammars_over_single_bytes_know_every_completion(
    grammar: str, letters: str, more: list[str], length: int, is_allowed: Callable[[str], bool], has_end: bool
) -> None:
    source = Enumerated(letters, length, is_allowed, has_end)
    constraint = compile_canvas(tiny(letters), grammar=grammar, end_tokens=source.ends)
    assert isinstance(constraint, ContextFreeConstraint)
    for canvas in canvases(source, length, 40):
        state = constraint.start()
        assert state.can_complete(canvas) == bool(source.completions(canvas)), canvas
        for place in range(length):
            if canvas[place] is None:
                assert state.allowed(canvas, place).tolist() == source.allowed(canvas, place), (canvas, place)


@pytest.mark.parametrize(("grammar", "letters", "more", "length", "is_allowed", "has_end"), CONTEXT_FREE)
def test_grammars_over_longer_tokens_are_sound_and_never_stuck(
    grammar: str, letters: str, more: list[str], length: int, is_allowed: Callable[[str], bool], has_end: bool
) -> None:
    tokens = [*letters, *more]
    source = Enumerated(tokens, length, is_allowed, has_end)
    constraint = compile_canvas(tiny(tokens), grammar=grammar, end_tokens=source.ends)
    crossed = 0
    for canvas in canvases(source, length, 40):
        state = constraint.start()
        is_open, found = state.can_complete(canvas), source.completions(canvas)
        assert not is_open or found
        for place in (place for place in range(length) if canvas[place] is None):
            expected, allowed = source.allowed(canvas, place), state.allowed(canvas, place).tolist()
            assert any(allowed) == is_open
            possible = {full[place] for full, _ in found}
            for token in range(source.size):
                fits = state.fits(canvas, place, token)
                assert fits or not allowed[token]
                assert expected[token] or not allowed[token], (canvas, place, token)
                assert not fits or token in possible, (canvas, place, token)
                crossed += fits and not allowed[token]
    assert crossed  # tokens across terminals are found by `fits` alone


def both() -> list[CanvasConstraint]:
    made = CanvasCompiler(tiny(["(", ")", "()", "))"]), end_tokens=[4])
    return [made.compile(regex=r"(\(\)|\(\(\)\))*"), made.compile(grammar=MATCHING)]


@pytest.mark.parametrize("constraint", both(), ids=["regular", "context-free"])
def test_tokens_pushed_and_unseen_room_count_as_a_part_of_the_canvas(constraint: CanvasConstraint) -> None:
    canvas: list[int | None] = [0, None, None, 1, None, None]
    whole = constraint.start()
    for cut, room in [(0, 2), (1, 0), (3, 1)]:
        state = constraint.start()
        for token in [0, 2, 1][:cut]:
            state.push(token)
        before: list[int | None] = [0, 2, 1][:cut]
        shown, full = canvas[: len(canvas) - room], [*before, *canvas]
        if room == 2:
            full = [*before, *shown, None, None]
        copy = state.fork()
        copy.push(1)
        assert state.can_complete(shown, room) == whole.can_complete(full)
        for place in (place for place, token in enumerate(shown) if token is None):
            assert torch.equal(state.allowed(shown, place, room), whole.allowed(full, cut + place))


@pytest.mark.parametrize("constraint", both(), ids=["regular", "context-free"])
def test_after_the_end_anything_may_stand(constraint: CanvasConstraint) -> None:
    state = constraint.start()
    assert state.allowed([2, 4, None], 2).all()
    assert not state.can_complete([0, 4, None])  # a text may not end with an open bracket
    assert state.can_complete([2, 4, 5])
    assert not state.can_complete([2, 5, 4])  # a mask is no text
    state.push(2)
    state.push(4)
    assert state.can_complete([0, None])
    assert state.allowed([0, None], 1).all()
    assert state.completion([0, None]) is not None


@pytest.mark.parametrize("constraint", both(), ids=["regular", "context-free"])
def test_the_best_that_fits_is_drawn_and_refuses_hopeless_canvases(constraint: CanvasConstraint) -> None:
    state = constraint.start()
    scores = torch.tensor([0.0, 4.0, 2.0, 5.0, -1.0, 9.0])
    assert state.redraw([None, None], 0, functools.partial(best_of, scores)) == 2
    assert state.redraw([None, None], 1, functools.partial(best_of, scores)) == 1
    assert state.redraw([0, None, None, None], 1, functools.partial(best_of, scores)) == 1
    assert state.redraw([0, None, None, 1], 1, functools.partial(best_of, scores)) in (0, 1)
    assert state.redraw([None], 0, functools.partial(best_of, torch.full((6,), -torch.inf))) in (2, 4)
    with pytest.raises(ConfigError, match="no way"):
        state.redraw([1, None], 1, functools.partial(best_of, scores))


@pytest.fixture(scope="module")
def stories() -> CanvasCompiler:
    tokenizer = Tokenizer.from_directory(path("stories"))
    assert tokenizer.eos_id is not None
    return CanvasCompiler(tokenizer, end_tokens=[tokenizer.eos_id])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(path("stories"))


def best_of(scores: torch.Tensor, allowed: torch.Tensor) -> int:
    masked = scores.masked_fill(~allowed, -torch.inf)
    return int(masked.argmax()) if masked.max() > -torch.inf else -1


def written(state: CanvasConstraintState, length: int, seed: int, tokenizer: Tokenizer, taste: torch.Tensor) -> str:
    """Fill a canvas in random order from random scores, checking the promise on the way; return its text."""
    chance, noise = random.Random(seed), torch.Generator().manual_seed(seed)
    canvas: list[int | None] = [None] * length
    places = list(range(length))
    chance.shuffle(places)
    for place in places:
        scores = taste + torch.randn(len(taste), generator=noise) * chance.choice([1.0, 5.0])
        canvas[place] = state.redraw(canvas, place, functools.partial(best_of, scores))
        assert state.can_complete(canvas)
    tokens = [token for token in canvas if token is not None]
    stop = tokens.index(tokenizer.eos_id) if tokenizer.eos_id in tokens else length
    return tokenizer.decode(tokens[:stop])


def tastes(tokenizer: Tokenizer) -> list[torch.Tensor]:
    """Indifferent; fond of brackets and quotes; the same, and never ending the text if it can be helped."""
    plain = torch.zeros(tokenizer.vocab_size)
    fond = plain.clone()
    for index in range(tokenizer.vocab_size):
        if set(tokenizer.token(index)) & set('{}[],:"'):
            fond[index] = 6.0
    endless = fond.clone()
    endless[tokenizer.eos_id] = -torch.inf
    return [plain, fond, endless]


@pytest.mark.parametrize("length", [1, 7, 24])
def test_json_written_in_any_order_parses(stories: CanvasCompiler, tokenizer: Tokenizer, length: int) -> None:
    constraint = stories.compile(grammar=JSON)
    assert isinstance(constraint, ContextFreeConstraint)
    parser = lark.Lark(JSON)
    depths = []
    for seed, taste in itertools.product(range(4), tastes(tokenizer)):
        text = written(constraint.start(), length, seed, tokenizer, taste)
        json.loads(text)
        parser.parse(text)
        depths.append(max(itertools.accumulate((letter in "{[") - (letter in "}]") for letter in text)))
    assert length < 24 or max(depths) > 1  # not only strings were written


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 3, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["old", "big"]}, "maxItems": 3},
        "at": {"$ref": "#/$defs/place"},
    },
    "required": ["age"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "anyOf": [{"type": "null"}, {"type": "array", "prefixItems": [{"type": "number"}] * 2, "items": False}]
        }
    },
}


def meets(value: object) -> bool:
    if not isinstance(value, dict) or set(value) - {"name", "age", "tags", "at"} or not 3 <= value["age"] <= 120:
        return False
    at = value.get("at")
    return (
        1 <= len(value.get("name", "x")) <= 20
        and set(value.get("tags", ())) <= {"old", "big"}
        and len(value.get("tags", ())) <= 3
        and (at is None or all(isinstance(part, int | float) for part in at[:2]))
    )


@pytest.fixture(scope="module")
def person(stories: CanvasCompiler) -> CanvasConstraint:
    return stories.compile(json_schema=SCHEMA)


@pytest.mark.parametrize("length", [9, 32])
def test_schemas_hold_in_any_order(person: CanvasConstraint, tokenizer: Tokenizer, length: int) -> None:
    constraint = person
    assert isinstance(constraint, RegularConstraint)
    assert constraint.start().can_complete([None] * length)
    for seed, taste in itertools.product(range(3), tastes(tokenizer)):
        value = json.loads(written(constraint.start(), length, seed, tokenizer, taste))
        assert meets(value), value
    assert not constraint.start().can_complete([None] * 2)
    assert "at most 2 tokens" in str(constraint.misfit([None] * 2))


def test_a_recursive_schema_is_a_grammar(stories: CanvasCompiler, tokenizer: Tokenizer) -> None:
    tree = {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}
    constraint = stories.compile(json_schema=tree)
    assert isinstance(constraint, ContextFreeConstraint)
    for seed in range(6):
        text = written(constraint.start(), 16, seed, tokenizer, tastes(tokenizer)[2])
        json.loads(text)
        assert set(text) <= set("[], ")


def test_a_grammar_that_is_regular_is_read_as_one(stories: CanvasCompiler) -> None:
    constraint = stories.compile(grammar='start: word (", " word)* "."\nword: /[a-z]+/')
    assert isinstance(constraint, RegularConstraint)
    automaton = constraint.automaton
    assert automaton.accept[automaton.after(automaton.start, b"one, two, three.")]
    assert not automaton.accept[automaton.after(automaton.start, b"one, two,three.")]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"regex": "(a"}, "cannot be used"),
        ({"regex": "(?<!a)b"}, "cannot be used"),
        ({"regex": r"a[^\s\S]"}, "allows no text"),
        ({"regex": ""}, "only the empty text"),
        ({"grammar": "begin: /a/"}, "start"),
        ({"grammar": "start: start /a/"}, "allows no text"),
        ({"grammar": 'start: "a'}, "cannot be used"),
        ({"grammar": r"start: /(?<!a)b/ start /c/ | /d/"}, "cannot be used"),
        ({"json_schema": "{"}, "not JSON"),
        ({"json_schema": "[1]"}, "not an object"),
        ({}, "No constraints"),
        ({"regex": "a", "grammar": "start: /a/"}, "2 constraints"),
    ],
)
def test_unusable_constraints_are_refused_in_a_sentence(
    stories: CanvasCompiler, given: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)) as caught:
        stories.compile(**given)  # type: ignore[arg-type]
    assert str(caught.value).endswith(".") and caught.value.hint
