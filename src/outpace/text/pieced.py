"""Tokenizers that encoder-decoders bring in place of a tokenizer.json: sentencepiece files, two of them, or bytes.

T5, mT5, UMT5    spiece.model: ids are those of its pieces, with the sentinels <extra_id_99> to <extra_id_0> behind
ByT5             no file: byte b is token b + 3
Marian           source.spm and target.spm cut texts into pieces, vocab.json gives them ids (target_vocab.json those
of the written text, where the sides have vocabularies of their own)
M2M100           sentencepiece.bpe.model cuts, vocab.json gives ids, with the languages' tokens behind
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from outpace.errors import ModelError
from outpace.text.byte_pairs import byte_alphabet
from outpace.text.files import AGAIN, read_object
from outpace.text.sentencepiece import SPACE, Pieces, piece_decoder, piece_engine, read_pieces

__all__ = ["ROLES_OF_PIECES", "Sides", "has_sides", "is_pieced", "read_pieced", "read_sides"]

_T5 = ("T5Tokenizer", "MT5Tokenizer")
_MARIAN, _M2M = ("source.spm", "target.spm"), "sentencepiece.bpe.model"
ROLES_OF_PIECES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}  # where the files name none
_MADE_UP = 8  # rows of M2M100's embedding behind its languages, which stand for nothing


def _kind(settings: Mapping[str, Any]) -> str:
    return str(settings.get("tokenizer_class") or "").removesuffix("Fast")


# Tokenizers whose pieces are numbered by their own file


def is_pieced(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether a directory holds what `read_pieced` reads."""
    kind = _kind(settings)
    return kind == "ByT5Tokenizer" or (kind in _T5 and (folder / "spiece.model").is_file())


def read_pieced(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer of T5's line.

    Args:
        folder: the model's directory.
        settings: its parsed tokenizer_config.json.

    Raises:
        ModelError: a file is damaged.
    """
    extra = settings.get("extra_ids")
    if _kind(settings) == "ByT5Tokenizer":
        engine = _bytes(125 if extra is None else int(extra))
    else:
        pieces = read_pieces(folder / "spiece.model")
        has_own = "<extra_id_0>" in pieces.texts
        count = (0 if has_own else 100) if extra is None else int(extra)
        engine = piece_engine(pieces, [f"<extra_id_{n}>" for n in reversed(range(0 if has_own else count))])
    end = _content(settings, "eos_token", "</s>")
    index = engine.token_to_id(end)
    if index is None:
        raise ModelError(f"{folder} has a tokenizer without its end token {end!r}.", hint=AGAIN)
    engine.post_processor = processors.TemplateProcessing(
        single="$A end", pair="$A end $B end", special_tokens=[{"id": "end", "ids": [index], "tokens": [end]}]
    )
    return engine


def _bytes(extra: int) -> Tokenizer:
    """Return ByT5's: three special tokens, the bytes, and sentinels."""
    named = ["<pad>", "</s>", "<unk>"]
    letters = {letter: len(named) + byte for letter, byte in byte_alphabet().items()}
    engine = Tokenizer(models.BPE({**{name: at for at, name in enumerate(named)}, **letters}, []))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    sentinels = [f"<extra_id_{number}>" for number in range(extra)]
    engine.add_tokens([AddedToken(name, special=True, normalized=False) for name in [*named, *sentinels]])
    return engine


def _content(settings: Mapping[str, Any], role: str, default: str) -> str:
    found = settings.get(role, default)
    return str(found.get("content", default) if isinstance(found, dict) else found)


# Tokenizers whose pieces have ids of their own


class Sides:
    """What cuts sources and written texts into pieces, and the ids that those have.

    Args:
        source, target: the engines that cut.
        source_ids: the id of each piece of a source.
        written: the engine of the written text's ids, which joins and names them.
        unknown: the spelling of the piece that stands for all others.
        has_tags: a source may begin with the language to be written, as >>xxx<<.
    """

    def __init__(
        self,
        source: Tokenizer,
        target: Tokenizer,
        source_ids: Mapping[str, int],
        written: Tokenizer,
        unknown: str,
        has_tags: bool,
    ) -> None:
        self.source, self.target, self.written = source, target, written
        self._source_ids, self._unknown, self._has_tags = dict(source_ids), unknown, has_tags

    def encode_source(self, text: str) -> list[int]:
        """Return the ids of a source, nothing put around it; a tag before it is one token."""
        tag, rest = _tag(text) if self._has_tags else ("", text)
        ids = self._source_ids
        unknown = ids[self._unknown]
        cut = self.source.encode(rest, add_special_tokens=False)
        return [ids.get(tag, unknown)] * bool(tag) + [
            ids.get(_surface(rest, token, place, self._unknown), unknown)
            for token, place in zip(cut.tokens, cut.offsets, strict=True)
        ]

    def encode_target(self, text: str) -> list[int]:
        """Return the ids of a written text, or of its beginning."""
        unknown = self.written.token_to_id(self._unknown)
        cut = self.target.encode(text, add_special_tokens=False)
        spelt = (
            _surface(text, token, place, self._unknown) for token, place in zip(cut.tokens, cut.offsets, strict=True)
        )
        found = (self.written.token_to_id(token) for token in spelt)
        return [index for index in (unknown if known is None else known for known in found) if index is not None]

    def source_text(self, ids: Sequence[int], hidden: Collection[str]) -> str:
        """Return the text of a source's ids, but for hidden pieces and tags of languages."""
        names = {index: token for token, index in self._source_ids.items()}
        found = [names.get(index, "") for index in ids]
        shown = (token for token in found if token not in hidden and not (self._has_tags and _tag(token)[0] == token))
        return "".join(shown).replace(SPACE, " ").strip()

    @property
    def source_tokens(self) -> list[str]:
        """The spellings of all pieces of sources."""
        return list(self._source_ids)

    def source_id(self, token: str) -> int | None:
        """Return the id of a piece of sources."""
        return self._source_ids.get(token)


def _surface(text: str, token: str, place: tuple[int, int], unknown: str) -> str:
    """Return a piece; of what no piece covers, the characters themselves, which may have an id all the same."""
    return text[place[0] : place[1]] if token == unknown else token


def _tag(text: str) -> tuple[str, str]:
    end = text.find("<<") if text.startswith(">>") else -1
    return (text[: end + 2], text[end + 2 :]) if end >= 0 else ("", text)


def has_sides(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether a directory holds what `read_sides` reads, or a part of it."""
    is_marian = any((folder / name).is_file() for name in _MARIAN)
    return is_marian or (_kind(settings) == "M2M100Tokenizer" and (folder / _M2M).is_file())


def read_sides(folder: Path, settings: Mapping[str, Any]) -> Sides:
    """Return the tokenizer of a Marian or an M2M100 model.

    Args:
        folder: the model's directory.
        settings: its tokenizer_config.json, with the special tokens of special_tokens_map.json.

    Raises:
        ModelError: a vocabulary is missing or damaged.
    """
    is_marian = (folder / _MARIAN[0]).is_file() or (folder / _MARIAN[1]).is_file()
    needed = [*_MARIAN, "vocab.json"] if is_marian else [_M2M, "vocab.json"]
    needed += ["target_vocab.json"] if settings.get("separate_vocabs") else []
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {missing[0]}, without which its {_role(missing[0])} has no tokens.",
            hint="Fetch the model again, with all files.",
        )
    unknown = _content(settings, "unk_token", "<unk>")
    models_of = [read_pieces(folder / name) for name in needed[: 2 if is_marian else 1]]
    source, target = piece_engine(models_of[0]), piece_engine(models_of[-1])
    source_ids = _ids(folder / "vocab.json", unknown)
    written_ids = _ids(folder / "target_vocab.json", unknown) if settings.get("separate_vocabs") else source_ids
    tags = [] if is_marian else _tags(settings)
    written = _written(folder, written_ids, models_of[-1], settings, tags)
    first = len(source_ids)
    named = source_ids | {tag: first + at for at, tag in enumerate(tags)}
    return Sides(source, target, named, written, unknown, is_marian)


def _role(name: str) -> str:
    return "source" if name.startswith(("source", "sentencepiece")) else "target" if "target" in name else "text"


def _ids(path: Path, unknown: str) -> dict[str, int]:
    """Return a vocabulary of one id each, from 0 on."""
    found = read_object(path)
    is_whole = all(isinstance(index, int) for index in found.values())
    if not is_whole or set(found.values()) != set(range(len(found))) or unknown not in found:
        raise ModelError(f"{path} does not number its pieces from 0 on, {unknown} among them.", hint=AGAIN)
    return found


def _tags(settings: Mapping[str, Any]) -> list[str]:
    """Return M2M100's tokens for languages, in the order of their ids, and those that stand for nothing."""
    more = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
    contents = [str(token.get("content") if isinstance(token, dict) else token) for token in more]
    languages = [token for token in contents if token.startswith("__") and token.endswith("__")]
    return [*languages, *(f"madeupword{number}" for number in range(_MADE_UP))]


def _written(
    folder: Path, ids: Mapping[str, int], pieces: Pieces, settings: Mapping[str, Any], tags: list[str]
) -> Tokenizer:
    """Return the engine that joins written ids and names them; it cuts nothing."""
    scores = dict(zip(pieces.texts, pieces.scores, strict=True))
    lowest = min(scores.values(), default=0.0)
    listed = [(piece, scores.get(piece, lowest)) for piece in sorted(ids, key=lambda piece: ids[piece])]
    unknown = ids[_content(settings, "unk_token", "<unk>")]
    engine = Tokenizer(models.Unigram(listed, unk_id=unknown, byte_fallback=False))
    engine.decoder = piece_decoder(pieces.is_led, pieces.has_bytes)
    named = [_content(settings, f"{role}_token", default) for role, default in _NAMED.items()]
    present = [name for name in dict.fromkeys(named) if name in ids]
    if _NAMED["eos"] not in present and _content(settings, "eos_token", "</s>") not in present:
        raise ModelError(f"{folder} has a vocabulary without an end token.", hint=AGAIN)
    engine.add_tokens([AddedToken(name, special=True, normalized=False) for name in [*present, *tags]])
    return engine


_NAMED = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>", "bos": "<s>"}
