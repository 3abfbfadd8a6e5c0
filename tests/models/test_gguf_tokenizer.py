"""Tokenizers out of GGUF metadata, against those that the metadata were taken from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, trainers

from outpace.errors import ModelError
from outpace.models.generation import read_generation
from outpace.text.gguf_file import Gguf
from outpace.text.gguf_tokenizer import end_ids, gguf_engine, gguf_settings, gguf_templates
from outpace.text.tokenizer import Tokenizer

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "He's 12345 years old;  they'LL go\n\n  to the\tpark...  ",
    "cafe\u0301 naïve 日本語 🙂 x²",
    "<|im_start|>user\nthe fox<|im_end|>\n<tool> fox",
    "   ",
    "",
]
CONTROL, USER = 3, 4


def facts(**keys: Any) -> Gguf:
    return Gguf(Path("model.gguf"), {key.replace("__", "."): value for key, value in keys.items()}, {})


def ggml(**keys: Any) -> dict[str, Any]:
    return {f"tokenizer__ggml__{key}": value for key, value in keys.items()}


@pytest.fixture(scope="module")
def pairs(tokenizer: Engine) -> dict[str, Any]:
    """The suite's byte-level tokenizer and four tokens more, as metadata."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [*sorted(model["vocab"], key=model["vocab"].get), "<|im_start|>", "<|im_end|>", "<tool>", "<unused>"]
    types = [1] * (len(tokens) - 4) + [CONTROL, CONTROL, USER, 5]
    types[0] = CONTROL  # the suite's own end
    merges = [" ".join(pair) for pair in model["merges"]]
    return ggml(model="gpt2", pre="gpt-2", tokens=tokens, token_type=np.array(types), merges=merges)


def test_byte_level_pairs_are_cut_as_the_tokenizer_cuts(pairs: dict[str, Any], tokenizer: Engine) -> None:
    engine = gguf_engine(facts(**pairs))
    for text in TEXTS[:3]:
        assert engine.encode(text).ids == tokenizer.encode(text).ids
        assert engine.decode(engine.encode(text).ids) == text
    tokens = pairs["tokenizer__ggml__tokens"]
    ids = engine.encode(TEXTS[3]).ids
    assert [tokens.index(mark) in ids for mark in ("<|im_start|>", "<|im_end|>", "<tool>", "<unused>")] == [1, 1, 1, 0]
    assert engine.decode(ids) == "user\nthe fox\n<tool> fox"  # control tokens have no text


CUT = {  # how each kind cuts one text
    "gpt-2": ["He", "'s", "Ġ1234", "ĠLL", "'", "LL", "ĊĊ"],
    "smollm": ["He", "'s", "Ġ", "1", "2", "3", "4", "ĠLL", "'", "LL", "ĊĊ"],
    "qwen2": ["He", "'s", "Ġ", "1", "2", "3", "4", "ĠLL", "'LL", "ĊĊ"],
    "llama-bpe": ["He", "'s", "Ġ", "123", "4", "ĠLL", "'LL", "ĊĊ"],
    "dbrx": ["He", "'s", "Ġ", "123", "4", "ĠLL", "'LL", "ĊĊ"],
    "gpt-4o": ["He's", "Ġ", "123", "4", "ĠLL'LL", "ĊĊ"],
    "tekken": ["He", "'s", "Ġ", "1", "2", "3", "4", "ĠLL", "'LL", "ĊĊ"],
    "default": ["He", "'", "s", "Ġ", "123", "4", "ĠLL", "'", "LL", "ĊĊ"],
}


@pytest.mark.parametrize("pre", CUT)
def test_text_is_cut_as_the_file_names_it(pre: str, pairs: dict[str, Any]) -> None:
    engine = gguf_engine(facts(**pairs | ggml(pre=pre)))
    assert engine.pre_tokenizer is not None
    assert [piece for piece, _ in engine.pre_tokenizer.pre_tokenize_str("He's 1234 LL'LL\n\n")] == CUT[pre]


def test_a_piece_that_is_a_token_is_not_merged_up_to(pairs: dict[str, Any]) -> None:
    """Llama 3 takes a whole word before it merges; others cannot reach a token that no merge makes."""
    whole = ggml(tokens=["zzz", *pairs["tokenizer__ggml__tokens"][1:]], token_type=np.array([1] * 304))
    assert gguf_engine(facts(**pairs | whole | ggml(pre="llama-bpe"))).encode("zzz").ids == [0]
    assert len(gguf_engine(facts(**pairs | whole | ggml(pre="dbrx"))).encode("zzz").ids) == 3


def test_texts_begin_and_end_as_the_file_asks(pairs: dict[str, Any]) -> None:
    start, end = (pairs["tokenizer__ggml__tokens"].index(mark) for mark in ("<|im_start|>", "<|im_end|>"))
    ids = ggml(bos_token_id=start, eos_token_id=end)
    plain = gguf_engine(facts(**pairs)).encode("the fox").ids
    for pre, keys, wanted in (
        ("gpt-2", {}, plain),
        ("gpt-2", ggml(add_bos_token=True), [start, *plain]),
        ("gpt-2", ggml(add_bos_token=True, add_eos_token=True), [start, *plain, end]),
        ("llama-bpe", {}, [start, *plain]),
        ("llama-bpe", ggml(add_bos_token=False), plain),
    ):
        assert gguf_engine(facts(**pairs | ids | ggml(pre=pre) | keys)).encode("the fox").ids == wanted
    odd = [*pairs["tokenizer__ggml__tokens"][:-1], "$a:1"]
    spelled = ggml(tokens=odd, bos_token_id=len(odd) - 1, add_bos_token=True)
    assert gguf_engine(facts(**pairs | spelled)).encode("the fox").ids == [len(odd) - 1, *plain]
    no_start = gguf_engine(facts(**pairs | ggml(add_bos_token=True)))  # asked for, but the file has none
    assert no_start.encode("the fox").ids == plain


def test_roles_templates_and_ends(pairs: dict[str, Any]) -> None:
    tokens = pairs["tokenizer__ggml__tokens"]
    start, turn, tool = (tokens.index(mark) for mark in ("<|im_start|>", "<|im_end|>", "<tool>"))
    keys = ggml(bos_token_id=start, eos_token_id=0, eot_token_id=tool, padding_token_id=9999)
    named = {"tokenizer__chat_template__tool_use": "T", "tokenizer__chat_templates": ["tool_use", "gone"]}
    gguf = facts(**pairs | keys | named, tokenizer__chat_template="D")
    assert gguf_settings(gguf) == {"bos_token": "<|im_start|>", "eos_token": tokens[0]}
    assert gguf_templates(gguf) == {"default": "D", "tool_use": "T"}
    assert end_ids(gguf) == (0, tool, turn)  # <|im_end|> ends a turn, whether a key says so or not
    lm = Tokenizer(gguf_engine(gguf), gguf_settings(gguf), gguf_templates(gguf))
    assert lm.render_chat([{"role": "user", "content": "x"}]) == "D"
    assert (lm.bos_id, lm.eos_id, lm.pad_id) == (start, 0, None)


@pytest.fixture(scope="module")
def pieces() -> tuple[Engine, dict[str, Any]]:
    """A tokenizer of sentencepiece's kind, and its metadata: scores fall in the order of merging."""
    special, letters = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    built = Engine(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special + letters, show_progress=False)
    built.train_from_iterator(["the quick brown fox jumps over the lazy dog and then the fox sleeps"], trainer)
    built.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    vocab = built.get_vocab()
    tokens = sorted(vocab, key=lambda token: vocab[token])
    types = [2, CONTROL, CONTROL] + [6] * 256 + [1] * (len(tokens) - 259)
    scores = -np.arange(len(tokens), dtype=np.float32)
    roles = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return built, ggml(model="llama", tokens=tokens, token_type=np.array(types), scores=scores, **roles)


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes(pieces: tuple[Engine, dict[str, Any]]) -> None:
    theirs, metadata = pieces
    ours = gguf_engine(facts(**metadata))
    for text in TEXTS:
        ids = ours.encode(text).ids
        assert ids == [1, *theirs.encode(text).ids], text
        assert ours.decode(ids) == text
    assert ours.encode("fox</s>fox", add_special_tokens=False).ids == [
        *theirs.encode("fox").ids,
        2,
        *theirs.encode("fox").ids,
    ]
    bare = gguf_engine(facts(**metadata | ggml(add_space_prefix=False, add_bos_token=False)))
    assert bare.encode("the fox").ids != theirs.encode("the fox").ids
    assert [bare.decode(bare.encode(text).ids) for text in TEXTS] == TEXTS


def test_phi3_drops_the_space_behind_its_turn_marks(pieces: tuple[Engine, dict[str, Any]]) -> None:
    metadata = dict(pieces[1])
    tokens, types = (
        [*metadata["tokenizer__ggml__tokens"], "<|end|>"],
        [*metadata["tokenizer__ggml__token_type"], CONTROL],
    )
    metadata |= ggml(tokens=tokens, token_type=np.array(types), scores=-np.arange(len(tokens), dtype=np.float32))
    spaced, close = "fox<|end|>\nfox", "fox<|end|>fox"
    phi = gguf_engine(facts(**metadata, general__architecture="phi3"))
    assert phi.encode(spaced).ids == phi.encode(close).ids
    other = gguf_engine(facts(**metadata, general__architecture="llama"))
    assert other.encode(spaced).ids != other.encode(close).ids


REFUSED = {
    "no vocabulary": (ggml(tokens=None), "has no vocabulary"),
    "no merges": (ggml(merges=None), "a tokenizer without merges"),
    "another kind": (ggml(model="t5"), "of the kind 't5'"),
    "no kind": (ggml(model=None), "nothing named"),
    "an unknown cut": (ggml(pre="fibonacci"), "cuts text by 'fibonacci'"),
    "a token twice": (ggml(tokens=["x"] * 200), "the token 'x' twice"),
    "too few types": (ggml(token_type=np.array([1, 1])), "a token_type for 2"),
    "a merge of one": (ggml(merges=["abc"]), "joins nothing"),
    "a merge of what is no token": (ggml(merges=["qqqq zzzz"]), "cannot be built"),
    "tokens that are numbers": (ggml(tokens=np.array([1, 2])), "no list of text"),
    "types that are text": (ggml(token_type=["1"]), "no list of numbers"),
    "a flag that is a number": (ggml(add_bos_token=1), "no flag"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_tokenizer_that_contradicts_itself_is_refused(case: str, pairs: dict[str, Any]) -> None:
    keys, words = REFUSED[case]
    with pytest.raises(ModelError, match=words) as caught:
        gguf_engine(facts(**pairs | keys))
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_sampling_is_what_the_file_asks_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.touch()
    asked = {
        "general.sampling.temp": 0.5,
        "general.sampling.top_p": float(np.float32(0.9)),
        "general.sampling.mirostat": 2,
    }
    monkeypatch.setattr("outpace.models.generation.read_gguf", lambda _: Gguf(path, asked, {}))
    found = read_generation(path)
    assert found.is_sampled
    assert dict(found.sampling) == {"temperature": 0.5, "top_k": 0, "top_p": 0.9}
    assert dict(found.unmet) == {"mirostat": 2}
    assert read_generation(path, "none").sampling == {}
