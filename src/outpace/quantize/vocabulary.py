"""A byte-level tokenizer as the keys of a GGUF file: tokens, kinds, merges, how text is cut, special tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from outpace.errors import ModelError
from outpace.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["write_vocabulary"]

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# What llama.cpp calls a way to cut text before bytes are merged, by its steps; "words" is GPT-2's own expression.
_CUTS = {
    ("words",): "gpt-2",
    ("digits", "words"): "smollm",
    (_ENGLISH + _WORDS + r"\p{N}{1,3}" + _REST,): "llama-bpe",
    (_ENGLISH + _WORDS + r"\p{N}" + _REST,): "qwen2",
}
_SAMPLE = "A text"


def write_vocabulary(
    writer: GGUFWriter, tokenizer: Tokenizer, vocab_size: int, end_tokens: Sequence[int], config: Mapping[str, Any]
) -> list[str]:
    """Write all keys of the tokenizer.

    Args:
        writer: of a file whose keys are not written yet.
        tokenizer: byte-level byte pairs.
        vocab_size: rows of the embedding; ids without a token are filled.
        end_tokens: ids that end a text, the most usual first.
        config: the parsed config.json; names a start token where the tokenizer does not.

    Returns:
        What a reader should know: where llama.cpp will not cut a text as the tokenizer does.

    Raises:
        ModelError: it is no byte-level tokenizer, or has more tokens than the model.
    """
    told = json.loads(tokenizer.to_json())
    model = told["model"]
    if model.get("type") != "BPE" or tokenizer.decoder_kinds != {"ByteLevel"}:
        raise ModelError(
            "GGUF files are written with byte-level byte-pair tokenizers only.", "Use --format compressed-tensors."
        )
    if tokenizer.vocab_size > vocab_size:
        raise ModelError(f"The tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}.")
    added = {token["id"]: token["special"] for token in told["added_tokens"]}
    tokens, kinds = [], []
    for index in range(vocab_size):
        token = tokenizer.token(index)
        kind = _CONTROL if added.get(index) else _USER_DEFINED if index in added else _NORMAL
        tokens.append(token or f"[PAD{index}]")
        kinds.append(kind if token else _UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    start, ends = _write_specials(writer, tokenizer, end_tokens, config)
    begins, stops = _framing(tokenizer, start, ends)
    writer.add_add_bos_token(begins)
    writer.add_add_eos_token(stops)
    if tokenizer.templates:
        writer.add_chat_template([{"name": name, "template": text} for name, text in tokenizer.templates.items()])
    notes = []
    cuts = _CUTS.get(tuple(_steps(told.get("pre_tokenizer"))), "")
    if cuts and (cuts == "llama-bpe") == bool(model.get("ignore_merges")):
        writer.add_tokenizer_pre(cuts)
    else:  # llama.cpp warns and takes its default; other readers find the whole tokenizer
        writer.add_string("tokenizer.huggingface.json", tokenizer.to_json())
        notes.append("llama.cpp has no name for how this tokenizer cuts text, and may cut it otherwise.")
    return notes


def _write_specials(
    writer: GGUFWriter, tokenizer: Tokenizer, end_tokens: Sequence[int], config: Mapping[str, Any]
) -> tuple[int | None, Sequence[int]]:
    """Write the special ids; return the start token and those that end a text."""
    ends = list(end_tokens)
    if tokenizer.eos_id is not None:  # an answer ends at the tokenizer's own one first
        ends = [tokenizer.eos_id, *(token for token in ends if token != tokenizer.eos_id)]
    stated = config.get("bos_token_id")
    start = tokenizer.bos_id if tokenizer.bos_id is not None else stated if isinstance(stated, int) else None
    writers = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for write, token in zip(writers, ends, strict=False):  # a file has room for three
        write(token)
    if start is not None or ends:  # where no start token is named, llama.cpp takes one of another vocabulary
        writer.add_bos_token_id(ends[0] if start is None else start)
    if tokenizer.pad_id is not None:
        writer.add_pad_token_id(tokenizer.pad_id)
    return start, ends


def _framing(tokenizer: Tokenizer, start: int | None, ends: Sequence[int]) -> tuple[bool, bool]:
    """Return whether every text begins with the start token, and whether it ends with the first end token."""
    bare, framed = tokenizer.encode(_SAMPLE, is_special=False), tokenizer.encode(_SAMPLE)
    begins = start is not None and framed[0] == start and bare[0] != start
    stops = bool(ends) and framed[-1] == ends[0] and bare[-1] != ends[0]
    if framed != [start] * begins + bare + list(ends[:1]) * stops:
        raise ModelError(
            "The tokenizer puts tokens around a text that a GGUF file has no keys for.",
            "Use --format compressed-tensors.",
        )
    return begins, stops


def _steps(cutter: Any) -> list[str]:
    """Return how a tokenizer.json cuts text, a name or an expression per step; "?" for what is not known here."""
    if not isinstance(cutter, dict):
        return ["?"]
    if cutter.get("type") == "Sequence":
        return [step for part in cutter["pretokenizers"] for step in _steps(part)]
    if cutter.get("type") == "ByteLevel":
        plain = not cutter.get("add_prefix_space")
        return (["words"] if cutter.get("use_regex", True) else []) if plain else ["?"]
    if cutter.get("type") == "Digits" and cutter.get("individual_digits"):
        return ["digits"]
    if cutter.get("type") == "Split" and cutter.get("behavior") == "Isolated" and not cutter.get("invert"):
        return [str(cutter["pattern"].get("Regex", "?"))]
    return ["?"]
