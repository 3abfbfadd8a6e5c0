"""Tokenizers of encoder-decoders that ship no tokenizer.json: ids are those that sentencepiece itself gave.

pieces.json holds two small models and the ids of some texts, as sentencepiece trained and cut them; their files are
written here, byte by byte.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from pairs import saved_pair

import outpace
from outpace.errors import ConfigError, ModelError
from outpace.text.sentencepiece import piece_engine, read_pieces
from outpace.text.tokenizer import Tokenizer

KNOWN: dict[str, Any] = json.loads((Path(__file__).parent / "pieces.json").read_text(encoding="utf-8"))
KINDS = {"unigram": 1, "bpe": 2}


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number: int, value: int | bytes | float) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def write_pieces(path: Path, kind: str, pieces: list[Any] | None = None) -> Path:
    """Write a sentencepiece file with the fields that count, and some that do not."""
    listed = KNOWN[kind]["pieces"] if pieces is None else pieces
    data = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + field(3, kind)) for text, score, kind in listed
    )
    data += field(2, field(1, b"made up") + field(3, KINDS[kind]) + field(40, 0)) + field(3, field(1, b"identity"))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_cut_as_by_sentencepiece(kind: str, tmp_path: Path) -> None:
    engine = piece_engine(read_pieces(write_pieces(tmp_path / "spiece.model", kind)))
    for text, ids in KNOWN[kind]["ids"]:
        assert engine.encode(text, add_special_tokens=False).ids == ids, text
        if 0 not in ids:
            assert engine.decode(ids, skip_special_tokens=False) == " ".join(text.split())


def directory(tmp_path: Path, settings: dict[str, Any], **files: Any) -> Path:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def test_t5_adds_sentinels_behind_its_pieces_and_ends_texts(tmp_path: Path) -> None:
    write_pieces(tmp_path / "spiece.model", "unigram")
    tokenizer = Tokenizer.from_directory(directory(tmp_path, {"tokenizer_class": "T5Tokenizer", "extra_ids": 3}))
    count, (text, ids) = len(KNOWN["unigram"]["pieces"]), KNOWN["unigram"]["ids"][0]
    assert tokenizer.eos_id == 2 and tokenizer.vocab_size == count + 3
    assert tokenizer.encode(text) == [*ids, 2] and tokenizer.decode(tokenizer.encode(text)) == text
    assert [tokenizer.token_id(f"<extra_id_{n}>") for n in (2, 1, 0)] == [count, count + 1, count + 2]
    assert tokenizer.encode(f"{text}<extra_id_0>", is_special=False) == [*ids, count + 2]
    assert tokenizer.spellings[ids[0]] is not None  # constraints work on it


def test_byt5_reads_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory(tmp_path, {"tokenizer_class": "ByT5Tokenizer"}))
    text = "größer 日\n"
    assert tokenizer.encode(text) == [*(byte + 3 for byte in text.encode()), 1]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id) == (384, 1, 0)
    assert tokenizer.token_id("<extra_id_0>") == 259 and tokenizer.spellings[3 + 0x41] == b"A"


def marian(tmp_path: Path) -> tuple[Path, dict[str, int]]:
    for name in ("source", "target"):
        write_pieces(tmp_path / f"{name}.spm", "unigram")
    pieces = [text for text, _, kind in KNOWN["unigram"]["pieces"] if kind == 1]
    vocab = {piece: at for at, piece in enumerate(["</s>", "<unk>", ">>deu<<", ">>fra<<", *reversed(pieces), "<pad>"])}
    return directory(tmp_path, {"tokenizer_class": "MarianTokenizer"}, vocab=vocab), vocab


def test_marian_cuts_by_one_file_and_numbers_by_another(tmp_path: Path) -> None:
    folder, vocab = marian(tmp_path)
    tokenizer = Tokenizer.from_directory(folder)
    for text, ids in KNOWN["unigram"]["ids"]:
        spelt = [KNOWN["unigram"]["pieces"][index][0] for index in ids]
        wanted = [vocab.get(piece, vocab["<unk>"]) for piece in spelt]
        assert tokenizer.encode(text) == [*wanted, 0] and tokenizer.encode(text, is_special=False) == wanted
    assert tokenizer.encode(">>fra<< the")[0] == 3 and tokenizer.encode(">>xxx<< the")[0] == 1
    assert tokenizer.decode(tokenizer.encode("the fox sleeps")) == "the fox sleeps"
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (0, len(vocab) - 1, len(vocab))
    tokenizer.speak("", "deu")
    assert tokenizer.encode("the") == [2, *tokenizer.encode("the", is_special=False), 0]
    with pytest.raises(ConfigError, match="no target language 'eng'") as caught:
        tokenizer.speak("", "eng")
    assert "deu, fra" in caught.value.hint
    with pytest.raises(ConfigError, match="reads one language"):
        tokenizer.speak("deu", "")


def test_sides_with_vocabularies_of_their_own(tmp_path: Path) -> None:
    folder, vocab = marian(tmp_path)
    other = {piece: len(vocab) - 1 - at for piece, at in vocab.items()}
    settings = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": True}
    tokenizer = Tokenizer.from_directory(directory(folder, settings, target_vocab=other))
    text = "the fox sleeps"
    assert tokenizer.encode(text)[:-1] == [len(vocab) - 1 - index for index in tokenizer.encode(text, is_special=False)]
    assert tokenizer.decode(tokenizer.encode(text, is_special=False)) == text


@pytest.mark.parametrize(
    ("gone", "said"), [("source.spm", "source has no"), ("target.spm", "target has no"), ("vocab.json", "text has no")]
)
def test_a_missing_vocabulary_is_named(gone: str, said: str, tmp_path: Path) -> None:
    folder, _ = marian(tmp_path)
    (folder / gone).unlink()
    with pytest.raises(ModelError, match=f"lacks {gone}, without which its {said} tokens"):
        Tokenizer.from_directory(folder)


def test_damaged_vocabularies_are_named(tmp_path: Path) -> None:
    folder, vocab = marian(tmp_path)
    (folder / "vocab.json").write_text(json.dumps(vocab | {"<unk>": 7}))
    with pytest.raises(ModelError, match=r"vocab.json does not number its pieces from 0 on"):
        Tokenizer.from_directory(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    data = (folder / "source.spm").read_bytes()
    for broken in (data[: len(data) // 2], b"", b"\xff" * 40, field(1, field(1, b"\xff"))):
        (folder / "source.spm").write_bytes(broken)
        with pytest.raises(ModelError, match=r"source\.spm is not a readable sentencepiece model"):
            Tokenizer.from_directory(folder)


def test_m2m100_frames_a_source_by_its_language(tmp_path: Path) -> None:
    write_pieces(tmp_path / "sentencepiece.bpe.model", "bpe")
    pieces = [text for text, _, kind in KNOWN["bpe"]["pieces"] if kind == 1]
    vocab = {piece: at for at, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces])}
    named = {"additional_special_tokens": ["__af__", "__de__", "__en__"]}
    tokenizer = Tokenizer.from_directory(
        directory(tmp_path, {"tokenizer_class": "M2M100Tokenizer"}, vocab=vocab, special_tokens_map=named)
    )
    size, text = len(vocab), KNOWN["bpe"]["ids"][0][0]
    inner = tokenizer.encode(text, is_special=False)
    assert tokenizer.encode(text) == [size + 2, *inner, 2]  # English, where nothing is said
    assert tokenizer.speak("de", "af").forced == size
    assert tokenizer.encode(text) == [size + 1, *inner, 2]
    assert tokenizer.decode([2, size, *inner, 2]) == text
    assert tokenizer.vocab_size == size + 3 + 8
    with pytest.raises(ConfigError, match="no source language 'xx'"):
        tokenizer.speak("xx", "af")


def translator(tmp_path: Path, model_root: Path) -> Path:
    """A random M2M100 with a tokenizer of fewer tokens than it has embeddings."""
    saved, _ = saved_pair("m2m100", model_root)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(saved / name)
    write_pieces(tmp_path / "sentencepiece.bpe.model", "bpe")
    pieces = [text for text, _, kind in KNOWN["bpe"]["pieces"] if kind == 1]
    vocab = {piece: at for at, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces])}
    named = {"additional_special_tokens": ["__af__", "__de__", "__en__"]}
    return directory(tmp_path, {"tokenizer_class": "M2M100Tokenizer"}, vocab=vocab, special_tokens_map=named)


def test_a_translator_writes_the_language_that_is_named(tmp_path: Path, model_root: Path) -> None:
    folder = translator(tmp_path, model_root)
    lm = outpace.load(folder, dtype="float64", source_language="de", target_language="af")
    assert lm.tokenizer is not None
    result = lm.generate("the fox", max_tokens=4)
    assert result.tokens[0] == lm.tokenizer.token_id("__af__") and not result.notes
    assert result.prompt_tokens[0] == lm.tokenizer.token_id("__de__")
    free = outpace.load(folder, dtype="float64").generate("the fox", max_tokens=4)
    assert free.notes == ["No language to write was named: target_language takes one of 3."]
    (folder / "model.safetensors").unlink()  # languages are looked at before weights
    with pytest.raises(ConfigError, match="no target language 'fr'") as caught:
        outpace.load(folder, target_language="fr")
    assert caught.value.hint == "There are af, de, en."


def test_a_long_source_is_cut_on_request_only(tmp_path: Path, model_root: Path) -> None:
    folder = translator(tmp_path, model_root)
    settings: dict[str, Any] = {"dtype": "float64", "source_language": "de", "target_language": "af"}
    whole, cut = (outpace.load(folder, cut_source=it, **settings) for it in (False, True))
    ids = [7, *range(10, 94), 2]
    with pytest.raises(ConfigError, match="86 tokens, but the encoder's positions end at 80"):
        whole.generate(ids, max_tokens=4)
    found = cut.generate([ids, ids[:5]], max_tokens=6)
    assert [result.tokens for result in found] == [
        whole.generate(source, max_tokens=6).tokens for source in ([*ids[:79], 2], ids[:5])
    ]
    assert "The source was cut from 86 to 80 tokens." in found[0].notes


@pytest.mark.parametrize(
    ("kind", "tags", "source", "target", "around"),
    [
        ("NllbTokenizer", ["deu_Latn", "eng_Latn"], "deu_Latn", "eng_Latn", ("deu_Latn", "</s>", "eng_Latn", None)),
        ("MBart50Tokenizer", ["de_DE", "en_XX"], "en_XX", "de_DE", ("en_XX", "</s>", "de_DE", None)),
        ("MBartTokenizer", ["de_DE", "en_XX"], "en_XX", "de_DE", (None, "</s> en_XX", None, "de_DE")),
    ],
)
def test_other_translators_frame_sources_too(
    kind: str, tags: list[str], source: str, target: str, around: tuple[str | None, ...], tmp_path: Path
) -> None:
    """Their tokenizer.json stands for one source language."""
    from tokenizers import AddedToken, models
    from tokenizers import Tokenizer as Engine

    engine = Engine(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    engine.add_tokens([AddedToken(token, special=True) for token in ("</s>", *tags)])
    tokenizer = Tokenizer(engine, {"tokenizer_class": kind, "eos_token": "</s>"})
    frame = tokenizer.speak(source, target)
    ids = {token: tokenizer.token_id(token) for token in ("</s>", *tags)}
    before, after, forced, start = ([ids[name] for name in (names or "").split()] for names in around)
    assert tokenizer.encode("a") == [*before, 1, *after]
    assert ([frame.forced], [frame.start]) == (forced or [None], start or [None])


def test_a_tokenizer_without_languages_takes_none(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory(tmp_path, {"tokenizer_class": "ByT5Tokenizer"}))
    with pytest.raises(ConfigError, match="names no languages"):
        tokenizer.speak("", "de")
