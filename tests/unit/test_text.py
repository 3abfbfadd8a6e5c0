"""Text streams over seven kinds of tokenizer, against decoding everything at once."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from os.path import commonprefix

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Engine

from outpace.constrain import token_bytes
from outpace.text.stream import TextStream
from outpace.text.tokenizer import Tokenizer

BROKEN = "\N{REPLACEMENT CHARACTER}"
WORDS = ["dog", "the", "s", "n't", ".", ",", "é", "日本", "🙂"]
RARE = "é日🙂"  # two, three and four bytes
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> Engine:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelled = [letters_of(word) for word in (" dog", " the", "dog é", "日本", "\n\n")]
    stray = [letters_of(b"a\xe6"), letters_of(b"\x97\xa5"), letters_of(b"\x9f\x99"), letters_of(b"\x82b")]
    engine = Engine(models.BPE({token: i for i, token in enumerate([*letters, *spelled, *stray])}, []))
    engine.decoder = decoders.ByteLevel()
    return engine


def letters_of(text: str | bytes) -> str:
    """Spell bytes in the byte-level alphabet: printable ones stand for themselves, the others follow from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    data = text.encode() if isinstance(text, str) else text
    return "".join(chr(byte) if byte in plain else chr(256 + others.index(byte)) for byte in data)


def sentencepiece(decoder: decoders.Decoder) -> Engine:
    pieces = [SPACE, *WORDS, *(SPACE + word for word in WORDS[:3]), SPACE * 3, "\n"]
    vocab = {token: i for i, token in enumerate([*BYTES, *pieces])}
    engine = Engine(models.BPE(vocab, [], byte_fallback=True))
    engine.decoder = decoder
    return engine


def unigram() -> Engine:
    pieces = [SPACE, *WORDS, *(SPACE + word for word in WORDS)]
    engine = Engine(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0))
    engine.decoder = decoders.Metaspace()
    return engine


def word_piece() -> Engine:
    pieces = [*WORDS, *("##" + word for word in WORDS), "##", "'", "not"]
    engine = Engine(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="dog"))
    engine.decoder = decoders.WordPiece(cleanup=True)
    return engine


def with_suffix() -> Engine:
    pieces = [*WORDS, *(word + "</w>" for word in WORDS), "</w>"]
    engine = Engine(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], end_of_word_suffix="</w>"))
    engine.decoder = decoders.BPEDecoder()
    return engine


def words_only() -> Engine:
    return Engine(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="dog"))


LLAMA = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
KINDS: dict[str, Callable[[], Engine]] = {
    "byte-level": byte_level,
    "byte fallback, first space stripped": lambda: sentencepiece(decoders.Sequence(LLAMA)),
    "byte fallback, nothing stripped": lambda: sentencepiece(decoders.Sequence(LLAMA[:3])),
    "Metaspace": unigram,
    "WordPiece": word_piece,
    "suffix": with_suffix,
    "words": words_only,
}


class Kind:
    """A tokenizer of one kind, and its tokens by what they write."""

    def __init__(self, name: str) -> None:
        engine = KINDS[name]()
        engine.add_tokens([AddedToken("<tool>", normalized=False)])
        engine.add_special_tokens(["<s>", "</s>", "<unk>"])
        self.tokenizer = Tokenizer(engine)
        ids = range(self.tokenizer.vocab_size)
        self.broken = [index for index in ids if self.tokenizer.byte(index) or BROKEN in self.tokenizer.decode([index])]
        self.whole = [index for index in ids if index not in self.broken]
        self.silent = [*self.tokenizer.special_ids.values(), self.tokenizer.vocab_size + 7]  # and an id that is none
        self.rare = [self.spell(character) for character in RARE]

    def spell(self, text: str) -> list[int]:
        """A text byte by byte, or word by word where bytes are no tokens."""
        names = ((f"<0x{byte:02X}>", letters_of(bytes([byte]))) for byte in text.encode())
        ids = [
            next((found for name in pair if (found := self.tokenizer.token_id(name)) is not None), -1) for pair in names
        ]
        return ids if -1 not in ids else [self.whole[len(text.encode())]]

    def tokens(self, chance: random.Random, most: int, is_broken: bool = True) -> list[int]:
        """Random tokens: characters in pieces, tokens that never show, whole ones and, if wanted, stray bytes."""
        found: list[int] = []
        size = chance.randint(0, most)
        while len(found) < size:
            case = chance.random()
            if case < 0.3:
                found += chance.choice(self.rare)
            elif case < 0.45:
                at = chance.randint(max(0, len(found) - 3), len(found))  # inside a character, too
                found[at:at] = [chance.choice(self.silent)] * chance.choice((1, 9))
            elif case < 0.55 and is_broken and self.broken:
                found.append(chance.choice(self.broken))
            else:
                found.append(chance.choice(self.whole))
        return found


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return Kind(request.param)


def behind(decode: Callable[[list[int]], str], prompt: list[int], written: list[int]) -> str:
    """What written tokens add to a prompt, from decoding everything."""
    whole = decode(prompt + written)
    return whole[len(commonprefix([decode(prompt), whole])) :]  # noqa: RUF071  letters are meant


def run(stream: TextStream, tokens: list[int]) -> list[str]:
    """Push tokens up to a stop; return what each let out, what the end let out last."""
    out = []
    for token in tokens:
        is_stopped = stream.push(token)
        out.append(stream.release())
        if is_stopped:
            break
    stream.flush()
    return [*out, stream.release(is_final=True)]


def test_a_stream_writes_what_decoding_everything_writes(kind: Kind) -> None:
    chance = random.Random(1)
    kept = functools.partial(kind.tokenizer.decode, skip_special=False)
    for i in range(200):
        prompt, written = kind.tokens(chance, 16), kind.tokens(chance, 24)
        decode = kept if i % 4 == 0 else kind.tokenizer.decode
        stream = TextStream(decode, (), prompt, byte=kind.tokenizer.byte)
        out = run(stream, written)
        assert "".join(out) == stream.text == behind(decode, prompt, written), (prompt, written)


def test_a_stream_stops_where_decoding_everything_first_shows_the_stop(kind: Kind) -> None:
    chance, decode, num_stopped = random.Random(2), kind.tokenizer.decode, 0
    for _ in range(200):
        prompt, written = kind.tokens(chance, 8), kind.tokens(chance, 16)
        shown = [behind(decode, prompt, written[:size]) for size in range(1, len(written) + 1)]
        text = chance.choice(chance.choice([*shown, "the dog"]).split(BROKEN))
        at = chance.randrange(len(text) + 1)
        stops = [stop for stop in (text[at : at + chance.randint(1, 4)], text[at + 1 : at + 3], "never") if stop]
        num = next((i for i, text in enumerate(shown) if any(stop in text for stop in stops)), None)
        stream = TextStream(decode, stops, prompt)
        out = run(stream, written)
        wanted = behind(decode, prompt, written)
        if num is not None:
            wanted = shown[num][: min(at for stop in stops if (at := shown[num].find(stop)) >= 0)]
            num_stopped += 1
            assert len(out) - 2 == num, (prompt, written, stops)
        assert stream.is_stopped == (num is not None), (prompt, written, stops)
        assert "".join(out) == stream.text == wanted, (prompt, written, stops)
    assert num_stopped > 40


def test_what_each_token_made_final_is_the_same_however_tokens_are_grouped(kind: Kind) -> None:
    chance, decode, num_stopped = random.Random(5), kind.tokenizer.decode, 0
    for _ in range(120):
        prompt, written = kind.tokens(chance, 8), kind.tokens(chance, 20)
        shown = behind(decode, prompt, written)
        at = chance.randrange(len(shown) + 1)
        stops = [stop for stop in (shown[at : at + chance.randint(1, 4)], "never") if stop and BROKEN not in stop]
        alone, together = TextStream(decode, stops, prompt), TextStream(decode, stops, prompt)
        single = run(alone, written)
        single[-2:] = ["".join(single[-2:])] if len(single) > 1 else single[-2:]  # an open end goes with the last token
        size, grouped = len(alone.ends), list[str]()
        while len(grouped) < size:
            first = len(grouped)
            count = min(chance.randint(1, 6), size - first)
            for token in written[first : first + count]:
                together.push(token)
            is_final = first + count == size
            if is_final:
                together.flush()
            grouped += together.release_each(range(first, first + count), is_final)
        assert grouped == single[: len(grouped)] and "".join(grouped) == "".join(single) * bool(size), (prompt, written)
        assert "".join(grouped) == together.text
        num_stopped += together.is_stopped
    assert num_stopped > 20


def test_an_end_token_that_is_not_pushed_takes_the_open_end_along() -> None:
    kind = Kind("byte fallback, nothing stripped")
    stream, (first, *rest) = TextStream(kind.tokenizer.decode, ("the dog",)), kind.spell("日")
    the = kind.tokenizer.token_id("the") or 0
    for token in (the, first):
        stream.push(token)
    assert stream.release_each(range(2)) == ["", ""]
    stream.push(rest[0])
    stream.flush()
    assert stream.release_each(range(2, 5), is_final=True) == ["", "", "the" + 2 * BROKEN]


def test_characters_leave_whole_wherever_the_prompt_ends(kind: Kind) -> None:
    chance, decode = random.Random(3), kind.tokenizer.decode
    for _ in range(150):
        tokens = kind.tokens(chance, 30, is_broken=False)
        cut = chance.randrange(len(tokens) + 1)
        out = "".join(run(TextStream(decode, (), tokens[:cut]), tokens[cut:]))
        whole = decode(tokens)
        assert BROKEN not in whole and BROKEN not in out and whole.endswith(out)
        assert len(out) >= len(whole) - len(decode(tokens[:cut]))


def test_the_work_per_token_does_not_grow_with_the_text(kind: Kind) -> None:
    decoded = []

    def decode(ids: list[int]) -> str:
        decoded.append(len(ids))
        return kind.tokenizer.decode(ids)

    chance, rare = random.Random(4), kind.spell("日")
    space = kind.tokenizer.token_id(SPACE) or kind.whole[0]
    texts = {
        "anything": kind.tokens(chance, 4000),
        "tokens that never show": [kind.whole[1], *kind.silent[:1] * 2000],
        "nothing else": kind.silent[:1] * 2000,
        "one run of bytes": [*rare * 700, kind.whole[1]],
        "short runs between spaces": [*rare, *rare, space] * 300,
        "stray bytes": [kind.whole[1], *rare[-1:] * 2000],
    }
    for name, tokens in texts.items():
        for prompt, written in ((tokens[:1], tokens[1:]), (tokens, tokens[:50])):
            decoded.clear()
            run(TextStream(decode, ("never",), prompt, byte=kind.tokenizer.byte), written)
            assert sum(decoded) < 150 * len(tokens + written), (name, len(prompt), sum(decoded))


def test_rare_characters_at_the_end_of_the_prompt_leave_later_words_alone() -> None:
    kind = Kind("byte fallback, first space stripped")
    words = [kind.tokenizer.token_id(SPACE + word) or 0 for word in ("dog", "the")]
    rare = kind.spell(RARE)
    for prompt in ([*words, *rare], rare, rare * 30, [*rare, kind.silent[0]]):
        stream = TextStream(kind.tokenizer.decode, (" the",), prompt)
        out = run(stream, [*kind.spell("日"), *words])
        assert stream.is_stopped and "".join(out) == "日 dog"


def test_a_stop_of_bytes_ends_the_text_at_its_last_byte() -> None:
    kind = Kind("byte fallback, nothing stripped")
    stream = TextStream(kind.tokenizer.decode, ("g日",), kind.whole[:1])
    dog = [kind.tokenizer.token_id("dog") or 0]
    assert [stream.push(token) for token in [*dog, *kind.spell("日日")]] == [False, False, False, *[True] * 4]
    assert stream.text == "do" and stream.release() == "do"
    stream = TextStream(kind.tokenizer.decode, ("日",))  # a run that is broken before it shows nothing of the kind
    assert not any(stream.push(token) for token in [*kind.spell("日")[:1], *kind.spell("日")])


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        ("<s>", "a"),
        ("a<s>", ""),
        ("<s>b", "a"),
        ("b</s>", "a"),
        ("ab", ""),
        ("<s><s>", "ab"),
        ("a</s>", "abc"),
        ("c", "ab"),
    ],
)
def test_a_stop_may_hold_the_name_of_a_token_that_does_not_show(stop: str, shown: str) -> None:
    tokenizer = Kind("byte-level").tokenizer
    ids = [tokenizer.token_id(token) or 0 for token in ("a", "<s>", "b", "</s>", "<s>", "<s>", "c")]
    names = {index: name for name, index in tokenizer.special_ids.items()}
    stream = TextStream(tokenizer.decode, ("never", stop), special=names)
    out = run(stream, ids)
    assert "".join(out) == stream.text == shown and stream.is_stopped == (shown != "abc")


def test_bytes_before_the_name_in_a_stop_are_text() -> None:
    kind = Kind("byte fallback, first space stripped")
    user = kind.tokenizer.special_ids["</s>"]
    stream = TextStream(kind.tokenizer.decode, ("日</s>",), kind.whole[:1], {user: "</s>"})
    assert [stream.push(token) for token in [*kind.spell("é日"), user]][-2:] == [False, True] and stream.text == "é"


def test_special_tokens_that_are_kept_can_be_a_stop() -> None:
    kind = Kind("byte-level")
    ids = [kind.tokenizer.token_id(token) or 0 for token in ("a", "<s>", "b", "</s>", "c")]
    stream = TextStream(functools.partial(kind.tokenizer.decode, skip_special=False), ("</s>",))
    assert run(stream, ids) == ["a", "<s>", "b", "", ""] and stream.text == "a<s>b"


def test_spellings_are_what_the_decoder_writes() -> None:
    for name in ("byte-level", "byte fallback, nothing stripped"):
        kind = Kind(name)
        tokenizer = Tokenizer(kind.tokenizer._engine)
        tokenizer._engine.add_tokens([AddedToken("é", normalized=False), AddedToken("<0xZZ>", normalized=False)])
        anchor = kind.whole[1]
        spelled = tokenizer.spellings
        constrained = token_bytes(tokenizer)
        for index, data in enumerate(spelled):
            if data is not None:
                own = tokenizer.decode([anchor, index])[len(tokenizer.decode([anchor])) :]
                assert constrained[index] == data, tokenizer.token(index)
                assert own.strip(BROKEN) == data.decode(errors="replace").strip(BROKEN), tokenizer.token(index)
