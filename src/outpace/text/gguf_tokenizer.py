"""The tokenizer that a GGUF file's metadata describe, as an object of the tokenizers library.

Two kinds: byte-level pairs ("gpt2"), whose cuts before merging have a name and no expression, and sentencepiece
("llama"), whose merges follow from the scores. What names mean is llama.cpp's table (src/llama-vocab.cpp); a name that
is not known is refused, since other cuts give other tokens without a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from outpace.errors import ModelError
from outpace.text.files import AGAIN
from outpace.text.gguf_file import Gguf
from outpace.text.sentencepiece import merges_by_score

__all__ = ["end_ids", "gguf_engine", "gguf_settings", "gguf_templates"]

_UNKNOWN, _CONTROL, _USER = 2, 3, 4  # token types; 1 normal, 5 unused, 6 byte
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "seperator": "sep", "mask": "mask"}
# Few files name more than one end: these tokens end a turn wherever they exist, a text where they are control tokens.
_TURNS = "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <end_of_turn> <|eom_id|> <end_of_utterance>".split()
_TEXTS = "<|endoftext|> <|end_of_text|> </s> <eos> <EOT>".split()

_NAMED = frozenset((*_TURNS, *_TEXTS))

# Cuts. Contractions, words, numbers, signs, line ends, spaces.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ENDING = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_ENDING}"
_QWEN2 = rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_ENDING}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_SLASHED}"
_GPT4O = rf"{_CASED[0]}{_SHORT}?|{_CASED[1]}{_SHORT}?|\p{{N}}{{1,3}}|{_SLASHED}"
_OLDEST = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[\x{4e00}-\x{9fa5}\x{0800}-\x{4e00}\x{ac00}-\x{d7ff}]+", r"\p{N}")


@dataclass(frozen=True, slots=True)
class _Cut:
    """How text is cut before merging.

    Attributes:
        expressions: one after the other cuts what the one before left.
        is_whole_first: a piece that is a token is not merged up to.
        has_start: texts begin with the start token unless the file says otherwise.
        is_composed: Unicode NFC first, which the tokenizers of that name do and files do not say.
    """

    expressions: tuple[str, ...]
    is_whole_first: bool = False
    has_start: bool = False
    is_composed: bool = False


_CUTS = {
    "default": _Cut(_OLDEST),
    "deepseek-coder": _Cut(_CODER),
    "qwen2": _Cut((_QWEN2,), is_composed=True),
    "tekken": _Cut((_TEKKEN,), True, True),
}
_CUTS |= dict.fromkeys(
    "gpt-2 phi-2 olmo mpt jais trillion granite-docling exaone4 mellum gigachat".split(), _Cut((_GPT2,))
)
_CUTS |= dict.fromkeys(
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2".split(), _Cut((r"\p{N}", _GPT2))
)
_CUTS |= dict.fromkeys(
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2".split(), _Cut((_LLAMA3,), True, True)
)
_CUTS |= dict.fromkeys("dbrx smaug-bpe chatglm-bpe glm4".split(), _Cut((_LLAMA3,)))
_CUTS |= dict.fromkeys("deepseek-r1-qwen megrez stablelm2 hunyuan kormo grok-2".split(), _Cut((_QWEN2,)))
_CUTS |= dict.fromkeys("gpt-4o llama4 kanana2".split(), _Cut((_GPT4O,)))


def gguf_engine(gguf: Gguf) -> Tokenizer:
    """Return the tokenizer of a model.

    Raises:
        ModelError: the file describes none, one of another kind, or one that contradicts itself.
    """
    kind = gguf.get("tokenizer.ggml.model", str)
    if kind not in ("gpt2", "llama"):
        raise ModelError(
            f"{gguf.path} has a tokenizer of the kind {kind or 'nothing named'!r}, which is not read here.",
            "Read are gpt2 (byte-level pairs) and llama (sentencepiece).",
        )
    tokens, types = _tokens(gguf), _types(gguf)
    whole = gguf.get("tokenizer.huggingface.json", str)
    if whole and gguf.get("tokenizer.ggml.pre", str) is None:  # no name says how it cuts: it came along as it is
        return _whole(gguf, whole, tokens)
    cut = _cut(gguf) if kind == "gpt2" else None
    engine = _byte_level(gguf, tokens, cut) if cut else _sentencepiece(gguf, tokens, types)
    engine.add_tokens(_added(gguf, tokens, types))
    _surround(gguf, engine, tokens, cut is None or cut.has_start)
    return engine


def _whole(gguf: Gguf, text: str, tokens: list[str]) -> Tokenizer:
    try:
        engine = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{gguf.path} holds a tokenizer.json that is not readable.", AGAIN) from error
    if any(index >= len(tokens) or tokens[index] != token for token, index in engine.get_vocab().items()):
        raise ModelError(f"{gguf.path} holds a tokenizer.json of other tokens than its own.", AGAIN)
    engine.no_padding()
    engine.no_truncation()
    return engine


def gguf_settings(gguf: Gguf) -> dict[str, Any]:
    """Return the special tokens by role, as a tokenizer_config.json has them."""
    tokens, found = _tokens(gguf), {}
    for theirs, ours in _ROLES.items():
        index = gguf.get(f"tokenizer.ggml.{theirs}_token_id", int)
        if index is not None and 0 <= index < len(tokens):
            found[f"{ours}_token"] = tokens[index]
    return found


def gguf_templates(gguf: Gguf) -> dict[str, str]:
    """Return the chat templates by name."""
    lone = gguf.get("tokenizer.chat_template", str)
    names = gguf.get("tokenizer.chat_templates", list) or []
    named = {name: gguf.get(f"tokenizer.chat_template.{name}", str) for name in names}
    return ({"default": lone} if lone else {}) | {name: text for name, text in named.items() if text}


def end_ids(gguf: Gguf) -> tuple[int, ...]:
    """Return the ids that end a text: those that the file calls so, and tokens whose name says it."""
    tokens = gguf.get("tokenizer.ggml.tokens", list) or []
    roles = [gguf.get(f"tokenizer.ggml.{role}_token_id", int) for role in ("eos", "eot", "eom")]
    ids = [index for index in roles if index is not None and 0 <= index < len(tokens)]
    named = {name: index for index, name in enumerate(tokens) if name in _NAMED}
    if {"<|return|>", "<|call|>"} <= set(named):  # there a message ends with <|end|>, and the turn goes on
        named.pop("<|end|>", None)
    types = _types(gguf) if named else None
    ids += [
        index for name, index in named.items() if name in _TURNS or (types is not None and types[index] == _CONTROL)
    ]
    return tuple(dict.fromkeys(ids))


def _tokens(gguf: Gguf) -> list[str]:
    tokens = gguf.get("tokenizer.ggml.tokens", list)
    if not tokens:
        raise ModelError(f"{gguf.path} has no vocabulary.", "Use a file that was converted with its tokenizer.")
    return [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]


def _types(gguf: Gguf) -> np.ndarray[Any, Any]:
    return _of_tokens(gguf, "token_type", 1)


def _of_tokens(gguf: Gguf, name: str, default: float) -> np.ndarray[Any, Any]:
    """Return one number per token."""
    count = len(_tokens(gguf))
    found = gguf.get(f"tokenizer.ggml.{name}", np.ndarray)
    if found is None:
        return np.full(count, default)
    if len(found) < count:
        raise ModelError(f"{gguf.path} has {count} tokens, but a {name} for {len(found)}.", AGAIN)
    return found[:count]


def _vocab(gguf: Gguf, tokens: list[str]) -> dict[str, int]:
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        twice = next(token for index, token in enumerate(tokens) if vocab[token] != index)
        raise ModelError(f"{gguf.path} has the token {twice!r} twice.", AGAIN)
    return vocab


# Byte-level pairs


def _cut(gguf: Gguf) -> _Cut:
    name = gguf.get("tokenizer.ggml.pre", str, "default")
    if name not in _CUTS:
        raise ModelError(
            f"{gguf.path} cuts text by {name!r} before it merges, which is not known here.",
            f"Known are {', '.join(sorted(_CUTS))}.",
        )
    return _CUTS[str(name)]


def _byte_level(gguf: Gguf, tokens: list[str], cut: _Cut) -> Tokenizer:
    lines = gguf.get("tokenizer.ggml.merges", list)
    if lines is None:
        raise ModelError(f"{gguf.path} has a tokenizer without merges.", "Convert the model again.")
    merges = []
    for line in lines:
        at = line.find(" ", 1)
        if at < 0:
            raise ModelError(f"{gguf.path} has a merge {line!r} that joins nothing.", AGAIN)
        merges.append((line[:at], line[at + 1 :]))
    engine = _engine(gguf, _vocab(gguf, tokens), merges, ignore_merges=cut.is_whole_first)
    if cut.is_composed:
        engine.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in cut.expressions]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.pre_tokenizer = pre_tokenizers.Sequence([*splits, letters])
    engine.decoder = decoders.ByteLevel()
    return engine


def _engine(gguf: Gguf, vocab: dict[str, int], merges: list[tuple[str, str]], **settings: Any) -> Tokenizer:
    try:
        return Tokenizer(models.BPE(vocab, merges, **settings))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{gguf.path} has a tokenizer that cannot be built: {error}.", AGAIN) from None


# Sentencepiece


def _sentencepiece(gguf: Gguf, tokens: list[str], types: np.ndarray[Any, Any]) -> Tokenizer:
    vocab, unknown = _vocab(gguf, tokens), gguf.get("tokenizer.ggml.unknown_token_id", int, -1)
    settings = {"unk_token": tokens[unknown]} if unknown is not None and 0 <= unknown < len(tokens) else {}
    merges = merges_by_score(tokens, _of_tokens(gguf, "scores", 0.0).tolist(), types.tolist())
    engine = _engine(gguf, vocab, merges, fuse_unk=True, byte_fallback=True, **settings)
    is_led = gguf.get("tokenizer.ggml.add_space_prefix", bool, True)
    lead = [normalizers.Prepend(_SPACE)] if is_led else []
    engine.normalizer = normalizers.Sequence([*lead, normalizers.Replace(" ", _SPACE)])
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    engine.decoder = decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if is_led else [])])
    return engine


# Tokens outside the merging


def _added(gguf: Gguf, tokens: list[str], types: np.ndarray[Any, Any]) -> list[AddedToken]:
    """Return the tokens that text is searched for before it is cut: control tokens (special) and user-defined ones."""
    # Phi-3's own tokenizer drops the space behind its turn marks; no key says so.
    is_phi = gguf.get("general.architecture", str) == "phi3" and gguf.get("tokenizer.ggml.model", str) == "llama"
    found = []
    for index in np.flatnonzero(np.isin(types, (_UNKNOWN, _CONTROL, _USER))).tolist():
        token, is_special = tokens[index], types[index] != _USER
        drops = is_phi and token not in ("<unk>", "<s>", "<|endoftext|>")
        found.append(AddedToken(token, special=bool(is_special), normalized=False, rstrip=drops))
    named = {token.content for token in found}
    ends = [tokens[index] for index in end_ids(gguf) if tokens[index] not in named]  # whatever type they are given
    return found + [AddedToken(token, special=True, normalized=False) for token in ends]


def _surround(gguf: Gguf, engine: Tokenizer, tokens: list[str], has_start: bool) -> None:
    """Put the start and end tokens around texts that the file asks for."""
    named, sides = [], []
    for role, default in (("bos", has_start), ("eos", False)):
        index = gguf.get(f"tokenizer.ggml.{role}_token_id", int)
        wanted = gguf.get(f"tokenizer.ggml.add_{role}_token", bool, default)
        is_there = wanted and index is not None and 0 <= index < len(tokens)
        if is_there and index is not None:  # under a name of its own: a token's text may be no name there
            named.append({"id": role, "ids": [index], "tokens": [tokens[index]]})
        sides.append([f"{role}:0"] if is_there else [])
    if named:
        start, end = sides
        engine.post_processor = processors.TemplateProcessing(
            single=[*start, "$A:0", *end],
            pair=[*start, "$A:0", *end, *start, "$B:1", *end],
            special_tokens=named,
        )
