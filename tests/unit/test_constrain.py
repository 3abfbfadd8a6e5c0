"""Constraints made by llguidance: token bytes, masks against brute force, forks, and what is refused."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Engine

import outpace
from outpace import constrain
from outpace.errors import ConfigError
from outpace.text.tokenizer import Tokenizer

pytest.importorskip("llguidance")
TEXT = "The cat, 日本語 é🙂ж\n\t  3.5%"


@pytest.fixture(scope="module")
def stories() -> Tokenizer:
    return Tokenizer.from_directory(Path(outpace.__file__).parent / "zoo" / "stories")


@pytest.fixture(scope="module")
def byte_level(tiny: Path) -> Tokenizer:
    return Tokenizer.from_directory(tiny)


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    """Llama's kind: a mark for spaces, bytes for what has no piece."""
    mark = "\u2581"
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [mark, "T", "h", "e", "c", "a", "t", "日", "ca", "cat", f"{mark}cat", "th"]
    merges = [("c", "a"), ("ca", "t"), (mark, "cat"), ("t", "h")]
    engine = Engine(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, byte_fallback=True, unk_token="<unk>")
    )
    engine.normalizer = normalizers.Sequence([normalizers.Prepend(mark), normalizers.Replace(" ", mark)])
    parts = [decoders.Replace(mark, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    engine.decoder = decoders.Sequence(parts)
    engine.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return Tokenizer(engine)


@pytest.mark.parametrize("name", ["stories", "byte_level", "sentencepiece"])
def test_token_bytes_spell_the_text(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    words = constrain.token_bytes(tokenizer)
    assert b"".join(words[token] for token in tokenizer.encode(TEXT, is_special=False)).strip(b" ") == TEXT.encode()
    for token in range(tokenizer.vocab_size):  # each token behind another, so that no space is stripped
        before = tokenizer.encode("cat", is_special=False)
        added = tokenizer.decode([*before, token], skip_special=False)[len(tokenizer.decode(before)) :]
        wanted = words[token].decode(errors="replace")
        assert added == wanted or set(added) == set(wanted) == {"\ufffd"}


def test_the_librarys_own_reading_agrees(stories: Tokenizer) -> None:
    from llguidance import LLTokenizer

    theirs = LLTokenizer(stories.to_json())
    ours = constrain.token_bytes(stories)
    differ = [token for token, word in enumerate(ours) if theirs.decode_bytes([token]) != word]
    assert [ours[token] for token in differ] == [b"\xff"]  # that byte marks special tokens there; no UTF-8 holds it


def wanted_mask(words: list[bytes], special: list[int], sentences: set[bytes], head: bytes) -> list[int]:
    heads = {sentence[:n] for sentence in sentences for n in range(len(sentence) + 1)}
    return [i for i, word in enumerate(words) if word and i not in special and head + word in heads]


SENTENCES = {
    "regex": (
        "(日本|日é|é🙂?)!?",
        {f"{head}{tail}".encode() for head in ("日本", "日é", "é", "é🙂") for tail in ("", "!")},
    ),
    "grammar": (
        'start: noun " " verb | noun\nnoun: "cat" | "the cat" | "日本"\nverb: "eats" | "é"',
        {f"{noun}{verb}".encode() for noun in ("cat", "the cat", "日本") for verb in ("", " eats", " é")},
    ),
    "json_schema": (
        json.dumps(
            {"type": "object", "properties": {"日": {"enum": ["cat", "日é", [1, 2]]}}, "required": ["日"]}
            | {"additionalProperties": False}
        ),
        {f'{{"日": {value}}}'.encode() for value in ('"cat"', '"日é"', "[1, 2]")},
    ),
}


@pytest.mark.parametrize("kind", SENTENCES)
@pytest.mark.parametrize("name", ["stories", "byte_level", "sentencepiece"])
def test_masks_are_the_tokens_that_begin_a_sentence(kind: str, name: str, request: pytest.FixtureRequest) -> None:
    """At every reachable state: the tokens whose bytes go on with some sentence, in the middle of characters too."""
    tokenizer = request.getfixturevalue(name)
    source, sentences = SENTENCES[kind]
    size = tokenizer.vocab_size + 7  # padding
    words = constrain.token_bytes(tokenizer, size)
    special = [token for token in range(size) if tokenizer.token(token) in ("<|end|>", "<|endoftext|>", "<|mask|>")]
    special += [0, 1, 2] if name == "sentencepiece" else []
    constraint = constrain.compile(tokenizer, vocab_size=size, **{kind: source})
    states, seen = [constraint.start()], set()
    while states:
        state = states.pop()
        head = b"".join(words[token] for token in state.tokens)
        if head in seen:
            continue
        seen.add(head)
        wanted = wanted_mask(words, special, sentences, head)
        assert state.allowed().shape == (size,)
        assert state.allowed().nonzero().flatten().tolist() == wanted, head
        assert state.is_complete == (head in sentences)
        assert state.is_final == (head in sentences and not wanted)
        forbidden = next(token for token in (5, 6, 40, size - 1, *range(size)) if token not in wanted)
        assert not state.push(forbidden) and not state.push(-1) and not state.push(size)
        for token in wanted:
            fork = state.fork()
            assert fork.push(token)
            states.append(fork)
    assert sentences < seen


def test_a_state_is_a_function_of_its_tokens(stories: Tokenizer) -> None:
    """Forks, refused tokens, steps back and masks leave no trace: the same tokens give the same masks."""
    source = random.Random(5)
    constraint = constrain.compile(stories, grammar='start: item+\nitem: "(" start ")" | /[a-c]{1,4}/ | "日é"')
    for _ in range(30):
        state, fresh = constraint.start(), constraint.start()
        for _ in range(12):
            choices = state.allowed().nonzero().flatten().tolist()
            if not choices:
                break
            other = state.fork()
            for _ in range(source.randrange(4)):
                other.push(source.choice(choices))
                other.allowed()
            count = source.randrange(len(state.tokens) + 1)
            taken = state.tokens[len(state.tokens) - count :]
            state.back(count)
            assert all(state.push(token) for token in taken)
            assert not state.push(0)
            token = source.choice(choices)
            assert state.push(token) and fresh.push(token)
            assert state.tokens == fresh.tokens
            assert torch.equal(state.allowed(), fresh.allowed()) and state.is_complete == fresh.is_complete


def test_a_dead_end_can_be_left_backwards(stories: Tokenizer) -> None:
    constraint = constrain.compile(stories, grammar='start: "x" END | "yz"\nEND: /a/ & /b/')
    state, x = constraint.start(), stories.token_id("x")
    assert x is not None and state.push(x)
    assert not state.allowed().any() and not state.is_complete and not state.is_final
    state.back(1)
    assert state.tokens == [] and state.allowed()[x]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"regex": "[0-9"}, "cannot be used: unterminated"),
        ({"regex": "(?=a)b"}, "looking ahead"),
        ({"regex": r"[^\s\S]"}, "allows no text at all"),
        ({"regex": ""}, "only the empty text"),
        ({"json_schema": "{"}, "JSON schema is not JSON"),
        ({"json_schema": "[]"}, "not an object"),
        ({"json_schema": {"type": "strin"}}, "JSON schema cannot be used: type: strin is not known"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "allows no text at all"),
        ({"json_schema": {"dependentSchemas": {}}}, "dependentSchemas"),
        ({"grammar": 'start: "a" ['}, r"grammar cannot be used: 1\(13\)"),
        ({"grammar": 'strt: "a"'}, "no start rule"),
        ({"grammar": 'start: "a" b'}, "unknown name|b"),
        ({"grammar": "start: X\nX: /a/ & /b/"}, "allows no text at all"),
        ({"grammar": 'start: "x" END | "why" END\nEND: /a/ & /b/'}, "allows no text at all"),
        ({}, "No constraints"),
        ({"regex": "a", "grammar": 'start: "a"'}, "2 constraints"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_in_one_sentence(stories: Tokenizer, given: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        constrain.compile(stories, **given)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".") and caught.value.hint


def test_a_tokenizer_whose_tokens_depend_on_their_neighbours_is_refused() -> None:
    engine = Engine(models.WordPiece({"[UNK]": 0, "cat": 1, "##s": 2}, unk_token="[UNK]"))
    engine.pre_tokenizer, engine.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    with pytest.raises(ConfigError, match="byte-level or sentencepiece"):
        constrain.compile(Tokenizer(engine), regex="cats")


def test_without_the_library_a_constraint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(ConfigError, match="need the package llguidance") as caught:
        constrain.check(regex="a")
    assert re.search(r"outpace\[constraints\]", caught.value.hint)
