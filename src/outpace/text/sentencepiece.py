"""Sentencepiece models (spiece.model, source.spm) as engines of the tokenizers library.

The file is a protocol buffer, of which few fields matter: the pieces with their scores and kinds, whether they are
joined by score (unigram) or by merging (BPE), and what is done to a text before it is cut.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from outpace.errors import ModelError
from outpace.text.files import AGAIN

__all__ = ["CONTROL", "SPACE", "Pieces", "merges_by_score", "piece_decoder", "piece_engine", "read_pieces"]

NORMAL, UNKNOWN, CONTROL, USER = 1, 2, 3, 4  # kinds of pieces; 5 unused, 6 a byte
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_UNIGRAM, _BPE = 1, 2


@dataclass(slots=True)
class Pieces:
    """What a sentencepiece file says.

    Attributes:
        texts, scores, kinds: of every piece, in the order of their ids.
        is_merged: texts are cut by merging; False = by the best sum of scores.
        unknown: the id of what no piece covers.
        has_bytes: what no piece covers is written as bytes.
        charsmap: how characters are normalised, in sentencepiece's own form; empty = not at all.
        is_led: a space is put before a text.
        is_squeezed: spaces at the ends, and runs of them, are dropped.
    """

    texts: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    is_merged: bool = False
    unknown: int = 0
    has_bytes: bool = False
    charsmap: bytes = b""
    is_led: bool = True
    is_squeezed: bool = True


def read_pieces(path: Path) -> Pieces:
    """Read a sentencepiece file.

    Raises:
        ModelError: it is missing, damaged, or of a kind that is cut otherwise (words, characters).
    """
    try:
        found = _read_model(path.read_bytes())
    except (OSError, ValueError, IndexError, struct.error):
        raise ModelError(f"{path} is not a readable sentencepiece model.", hint=AGAIN) from None
    if not found.texts or not 0 <= found.unknown < len(found.texts):
        raise ModelError(f"{path} is not a readable sentencepiece model.", hint=AGAIN)
    return found


def _read_model(data: bytes) -> Pieces:
    found, parts = Pieces(), set[int]()
    for number, value in _fields(data):
        parts.add(number)
        if number == 1 and isinstance(value, bytes):
            piece = dict(_fields(value))
            score, text = piece.get(2, b"\0\0\0\0"), piece.get(1, b"")
            if not isinstance(score, bytes) or not isinstance(text, bytes):
                raise ValueError
            found.texts.append(text.decode())
            found.scores.append(struct.unpack("<f", score)[0])
            found.kinds.append(int(piece.get(3, NORMAL)))
        elif number == 2 and isinstance(value, bytes):
            trained = dict(_fields(value))
            kind = trained.get(3, _UNIGRAM)
            if kind not in (_UNIGRAM, _BPE):
                raise ValueError
            found.is_merged, found.unknown = kind == _BPE, int(trained.get(40, 0))
            found.has_bytes = bool(trained.get(35, 0))
        elif number == 3 and isinstance(value, bytes):
            rules = dict(_fields(value))
            charsmap = rules.get(2, b"")
            found.charsmap = charsmap if isinstance(charsmap, bytes) else b""
            found.is_led, found.is_squeezed = bool(rules.get(3, 1)), bool(rules.get(4, 1))
    if not {1, 2, 3} <= parts:  # the end is missing
        raise ValueError
    return found


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a protocol buffer's message: their numbers, and integers or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        value: int | bytes
        if kind == 0:
            value, at = _varint(data, at)
        else:
            size, at = (8, at) if kind == 1 else (4, at) if kind == 5 else _varint(data, at) if kind == 2 else (-1, at)
            if size < 0 or at + size > len(data):
                raise ValueError
            value, at = data[at : at + size], at + size
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError


def piece_engine(pieces: Pieces, more: Sequence[str] = ()) -> Tokenizer:
    """Return the tokenizer of a sentencepiece model; nothing is put around texts.

    Control tokens and a user's own pieces are found in a text before it is cut, and what follows one begins anew, with
    a space, as in the tokenizers of transformers; sentencepiece itself reads the former as plain characters.

    Args:
        pieces: its file.
        more: special tokens whose ids follow those of the pieces.
    """
    texts, scores = list(pieces.texts), list(pieces.scores)
    if len(set(texts)) < len(texts):
        twice = next(text for at, text in enumerate(texts) if texts.index(text) != at)
        raise ModelError(f"A sentencepiece model has the piece {twice!r} twice.", hint=AGAIN)
    if pieces.is_merged:
        vocab = {text: index for index, text in enumerate(texts)}
        merges = merges_by_score(texts, scores, pieces.kinds)
        unknown = texts[pieces.unknown]
        engine = Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=pieces.has_bytes))
    else:
        listed = list(zip(texts, scores, strict=True))
        engine = Tokenizer(models.Unigram(listed, unk_id=pieces.unknown, byte_fallback=pieces.has_bytes))
    engine.normalizer = _normalizer(pieces)
    engine.decoder = piece_decoder(pieces.is_led, pieces.has_bytes)
    named = [
        AddedToken(text, special=kind != USER, normalized=False)
        for text, kind in zip(texts, pieces.kinds, strict=True)
        if kind in (UNKNOWN, CONTROL, USER)
    ]
    engine.add_tokens([*named, *(AddedToken(text, special=True, normalized=False) for text in more)])
    return engine


def piece_decoder(is_led: bool = True, has_bytes: bool = False) -> decoders.Decoder:
    """Return what joins pieces to a text."""
    parts: list[decoders.Decoder] = [decoders.Replace(SPACE, " ")]
    parts += [decoders.ByteFallback()] if has_bytes else []
    return decoders.Sequence([*parts, decoders.Fuse(), *([decoders.Strip(" ", 1, 0)] if is_led else [])])


def _normalizer(pieces: Pieces) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(pieces.charsmap)] if pieces.charsmap else []
    if pieces.is_squeezed:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend(" ")] if pieces.is_led else []
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def merges_by_score(texts: Sequence[str], scores: Sequence[float], kinds: Sequence[int]) -> list[tuple[str, str]]:
    """Return the pairs that make pieces, best score first: sentencepiece merges whatever pair makes the best piece.

    Args:
        texts, scores, kinds: of every piece.
    """
    known = {text for text, kind in zip(texts, kinds, strict=True) if kind not in (UNKNOWN, CONTROL, USER)}
    found = []
    for index in sorted(range(len(texts)), key=lambda index: -scores[index]):
        text = texts[index]
        if len(text) > 1 and text in known:
            found += [(text[:at], text[at:]) for at in range(1, len(text)) if text[:at] in known and text[at:] in known]
    return found
