"""vocab.json and merges.txt in place of a tokenizer.json, as Dream has them, against transformers' Qwen2 tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from tokenizers import Tokenizer as Engine

from outpace.errors import ModelError
from outpace.text.tokenizer import Tokenizer

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "He's 12345 years old;  they'LL go\n\n  to the\tpark...  ",
    "cafe\u0301 naïve 日本語 🙂 x²",  # a combining accent: NFC joins it
    "<|im_start|>user\nthe fox<|im_end|>\n<|mask|>fox <tool>",
    "   ",
]


@pytest.fixture
def tables(tokenizer: Engine, tmp_path: Path) -> Path:
    """The merges of the suite's tokenizer as two tables; the settings name four tokens more."""
    model = json.loads(tokenizer.to_str())["model"]
    vocab = {token: index for index, token in enumerate(sorted(model["vocab"], key=model["vocab"].get))}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    merges = [" ".join(pair) for pair in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    write_settings(tmp_path, ["<|im_start|>", "<|im_end|>", "<|mask|>", "<tool>"], len(vocab))
    return tmp_path


def write_settings(folder: Path, added: list[str], first: int, kind: str = "Qwen2Tokenizer") -> None:
    facts: dict[str, Any] = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {
        str(first + i): facts | {"content": token, "special": token.startswith("<|")} for i, token in enumerate(added)
    }
    settings = {"tokenizer_class": kind, "added_tokens_decoder": decoder, "eos_token": "<|im_end|>"}
    settings |= {"pad_token": "<|im_end|>", "unk_token": "<|im_end|>", "mask_token": "<|mask|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_text_equal_transformers(text: str, tables: Path) -> None:
    theirs = hf.AutoTokenizer.from_pretrained(tables)
    ours = Tokenizer.from_directory(tables)
    ids = ours.encode(text)
    assert ids == theirs.encode(text) and len(ids) > 0
    assert ours.decode(ids, skip_special=False) == theirs.decode(ids, skip_special_tokens=False)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_dreams_own_class_is_the_same_tokenizer(tables: Path) -> None:
    ours = Tokenizer.from_directory(tables)
    settings = json.loads((tables / "tokenizer_config.json").read_text())
    (tables / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "DreamTokenizer"}))
    dream = Tokenizer.from_directory(tables)
    assert dream.to_json() == ours.to_json()
    assert dream.eos_id == dream.token_id("<|im_end|>") is not None
    assert dream.special_ids.keys() == {"<|im_start|>", "<|im_end|>", "<|mask|>"}


def test_an_id_that_the_tables_do_not_lead_to(tables: Path) -> None:
    write_settings(tables, ["<|im_start|>", "<|im_end|>"], 900)
    with pytest.raises(ModelError, match=r"'<\|im_start\|>' should have id 900"):
        Tokenizer.from_directory(tables)


def test_damaged_tables(tables: Path) -> None:
    (tables / "vocab.json").write_text("{")
    with pytest.raises(ModelError, match=r"no readable vocab\.json"):
        Tokenizer.from_directory(tables)


def test_tables_of_another_kind_are_not_guessed(tables: Path) -> None:
    write_settings(tables, ["<|im_start|>"], 300, "GPT2Tokenizer")
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        Tokenizer.from_directory(tables)
