"""A tokenizer from vocab.json and merges.txt, for the Qwen2 line of models that ships no tokenizer.json (Dream).

The byte-pair tables say what is merged, not how text is cut before: that is known here for Qwen2 alone (Unicode NFC,
cuts at contractions, words, single digits, punctuation, line breaks and spaces, then bytes).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from outpace.errors import ModelError
from outpace.text.added_tokens import token_of
from outpace.text.files import AGAIN

__all__ = ["byte_alphabet", "has_byte_pairs", "read_byte_pairs"]

_CLASSES = ("DreamTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast")
_CUTS = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # contractions
        r"[^\r\n\p{L}\p{N}]?\p{L}+",  # a word, with one sign before it
        r"\p{N}",  # a digit
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # punctuation
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


def has_byte_pairs(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether a directory holds tables of the kind that `read_byte_pairs` reads."""
    is_there = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return is_there and settings.get("tokenizer_class") in _CLASSES


def read_byte_pairs(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer of a directory.

    Args:
        folder: holds vocab.json and merges.txt.
        settings: the parsed tokenizer_config.json; its `added_tokens_decoder` names the tokens beyond the tables.

    Raises:
        ModelError: the tables are damaged, or an added token would not get the id that it is said to have.
    """
    try:
        vocab, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        engine = Tokenizer(models.BPE(vocab, merges))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{folder} holds no readable vocab.json and merges.txt.", hint=AGAIN) from error
    engine.normalizer = normalizers.NFC()
    cuts = pre_tokenizers.Split(Regex(_CUTS), "isolated")
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    engine.decoder = decoders.ByteLevel()
    for index, facts in sorted((int(key), value) for key, value in settings.get("added_tokens_decoder", {}).items()):
        token = token_of({"normalized": False, **facts})
        engine.add_special_tokens([token]) if token.special else engine.add_tokens([token])
        if engine.token_to_id(token.content) != index:
            raise ModelError(
                f"The added token {token.content!r} should have id {index}, but the tables before it leave it "
                f"{engine.token_to_id(token.content)}.",
                hint=AGAIN,
            )
    return engine


@functools.lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """Return the byte that each letter of the byte-level alphabet stands for: printable ones stand for themselves."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}
