"""The comparisons with llama.cpp, on peers that say what a test lets them say."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import outpace
from outpace.bench.gguf_chat import answers
from outpace.bench.gguf_text import compare, read_lines
from outpace.errors import ConfigError


class Peer:
    """Cuts text as the model does, and writes given tokens."""

    def __init__(self, lm: outpace.LanguageModel, tokens: Sequence[int]) -> None:
        self.lm, self.tokens = lm, tokens

    def reset(self) -> None:
        pass

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        assert special and not add_bos
        return self.lm.encode(text.decode(), is_special=False)

    def generate(self, ids: Sequence[int], **law: float) -> Iterator[int]:
        assert law["temp"] == 0.0
        yield from self.tokens


@pytest.fixture(scope="module")
def lm(tiny: Path) -> outpace.LanguageModel:
    found = outpace.load(tiny, dtype="float64", is_compiled=False)
    assert found.tokenizer is not None
    found.tokenizer.templates = {"default": "{{ messages[0].content }}:"}
    return found.ending_with([0])


def test_answers_are_compared_token_by_token(lm: outpace.LanguageModel) -> None:
    assert lm.tokenizer is not None
    prompt = ("one", "the quick brown fox")
    ids = lm.encode_chat([{"role": "user", "content": prompt[1]}])
    wrote = list(lm.generate(ids, max_tokens=8).tokens)
    (same,) = answers(lm, Peer(lm, [*wrote, 5, 6]), [prompt], 8)
    assert (same.length, same.total, same.ours, same.margin, same.is_cut_alike) == (8, 8, "", 0.0, True)
    other = (wrote[3] + 1) % 290
    (parted,) = answers(lm, Peer(lm, [*wrote[:3], other, *wrote[4:]]), [prompt], 8)
    assert (parted.length, parted.total) == (3, 8)
    scored = [lm.score([*ids, *wrote[:3], token]).log_probs[-1] for token in (wrote[3], other)]
    assert scored[0] is not None
    assert scored[1] is not None
    assert parted.margin == scored[0] - scored[1] > 0
    (ended,) = answers(lm, Peer(lm, [*wrote[:2], lm.end_tokens[0], 9]), [prompt], 8)
    assert (ended.length, ended.theirs) == (2, repr(lm.tokenizer.decode([0], skip_special=False)))


def test_lines_that_are_cut_otherwise_are_shown_from_there(lm: outpace.LanguageModel) -> None:
    tokenizer = lm.tokenizer
    assert tokenizer is not None

    def other(text: str) -> list[int]:
        ids = tokenizer.encode(text, is_special=False)
        return ids[:2] if "fox" in text else ids

    (cut,) = compare(tokenizer, other, ["the lazy dog", "the quick brown fox"])
    ids = tokenizer.encode("the quick brown fox", is_special=False)
    assert (cut.text, cut.theirs) == ("the quick brown fox", ())
    assert cut.ours == tuple(map(tokenizer.token, ids[2:10]))


def test_lines_come_from_plain_and_gzipped_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\u2028still two\n", encoding="utf-8")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"three\nfour"))
    paths = [tmp_path / "a.txt", tmp_path / "b.txt.gz"]
    assert read_lines(paths, 3) == ["one", "two\u2028still two", "three"]
    with pytest.raises(ConfigError, match="cannot be read"):
        read_lines([tmp_path / "gone"], 3)
