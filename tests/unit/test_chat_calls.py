"""Conversations, stop tokens and special tokens through the Python face, on a model that writes what it is told to."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import outpace
from outpace import LanguageModel, Result
from outpace.errors import ConfigError
from outpace.testing import ToyModel
from outpace.text.stream import TextStream

METHODS = ["autoregressive", "prompt-lookup", "jacobi", "layer-skip"]
TURN = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def lm(tiny: Path) -> LanguageModel:
    return outpace.load(tiny)


# Conversations


def test_messages_are_a_prompt(lm: LanguageModel) -> None:
    framed = lm.generate("user: hi\nbot:", max_tokens=4)
    for found in (
        lm.generate([TURN], max_tokens=4),
        lm.chat([TURN], max_tokens=4),
        lm.generate([[TURN], [TURN, TURN]], max_tokens=4)[0],
        lm.chat([[TURN], [TURN, TURN]], max_tokens=4)[0],
    ):
        assert (found.prompt_tokens, found.tokens) == (framed.prompt_tokens, framed.tokens)
    assert "".join(lm.stream([TURN], max_tokens=4)) == framed.text
    batch = lm.generate([[TURN], "user: hi\nbot:"], max_tokens=4)
    assert [result.tokens for result in batch] == [framed.tokens] * 2


def test_a_chat_may_go_on_with_a_message(lm: LanguageModel) -> None:
    found = lm.chat([TURN, {"role": "bot", "content": "the quick"}], is_continued=True, max_tokens=4)
    assert found.prompt_tokens == lm.encode("user: hi\nbot: the quick")


def test_what_a_template_does_not_look_at_is_in_the_notes(lm: LanguageModel) -> None:
    found = lm.chat([TURN], tools=[{"name": "f"}], variables={"enable_thinking": False}, max_tokens=2, num_samples=2)
    for result in found:
        assert [note for note in result.notes if "chat template" in note] == [
            "The chat template does not look at tools.",
            "The chat template does not look at enable_thinking.",
        ]
    assert not any("chat template" in note for note in lm.chat([TURN], max_tokens=2).notes)


@pytest.mark.parametrize("messages", [[], ["hi"], "hi", [[]]])
def test_what_is_no_conversation_is_a_sentence(lm: LanguageModel, messages: Any) -> None:
    with pytest.raises(ConfigError):
        lm.chat(messages)


# A text that ends at once


def test_an_instruct_model_that_has_nothing_to_say_to_bare_text(lm: LanguageModel) -> None:
    ends = {token: 1000.0 for token in lm.end_tokens}
    said = lm.generate("hi", max_tokens=8, logit_bias=ends)
    assert said.finish_reason == "eos" and any("--chat" in note for note in said.notes)
    free = [
        lm.chat([TURN], max_tokens=8, logit_bias=ends),
        lm.generate(lm.encode("hi"), max_tokens=8, logit_bias=ends),
        lm.generate("hi <|end|> hi", max_tokens=8, logit_bias=ends),  # framed by hand
        lm.generate("hi", max_tokens=8, logit_bias=ends, min_tokens=5),
        lm.generate("hi", max_tokens=8, regex="[a-z]", logit_bias=ends),
        lm.generate("hi", max_tokens=2),
    ]
    assert not any("--chat" in note for result in free for note in result.notes)
    assert {result.finish_reason for result in free[:5]} == {"eos"}


# Special tokens


@pytest.fixture(scope="module")
def marked(cycle: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """Writes 日語é<|end|>🙂ж and a space, for ever."""
    directory = shutil.copytree(cycle, tmp_path_factory.mktemp("marked"), dirs_exist_ok=True)
    weights = load_file(cycle / "model.safetensors")
    end, before, behind = tokenizer.token_to_id("<|end|>"), tokenizer.encode("é").ids[-1], tokenizer.encode("🙂").ids[0]
    weights["lm_head.weight"][end, before] = weights["lm_head.weight"][behind, end] = 2.0
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return outpace.load(directory)


def drain(lm: LanguageModel, **arguments: Any) -> tuple[list[str], Result]:
    stream, pieces = lm.stream(" ", ignore_eos=True, **arguments), []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as ended:
            return pieces, ended.value


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("stop", "text", "count"),
    [
        ("<|end|>", "日語é", 9),
        ("é<|end|>", "日語", 9),
        ("<|end|>🙂", "日語é", 13),
        ("語é<|end|>🙂ж", "日", 15),
    ],
)
def test_a_stop_string_may_name_a_special_token(
    marked: LanguageModel, method: str, stop: str, text: str, count: int
) -> None:
    pieces, result = drain(marked, method=method, max_tokens=40, stop=["never", stop])
    assert (result.finish_reason, result.text, len(result.tokens)) == ("stop", text, count)
    assert "".join(pieces) == text and "\ufffd" not in text


def test_a_special_token_that_is_no_stop_leaves_the_text_as_it_is(marked: LanguageModel) -> None:
    for stop in ("<|end|>ж", "é🙂<|end|>", "<|end|>日"):
        pieces, result = drain(marked, max_tokens=32, stop=[stop])
        assert (result.finish_reason, result.text) == ("length", "日語é🙂ж 日語é🙂ж ")
        assert "".join(pieces) == result.text
    for stops in (["é🙂"], ["ж<|end|>", "é🙂"]):  # other stop strings are looked for in the text as it is shown
        assert drain(marked, max_tokens=32, stop=stops)[1].text == "日語"
    assert marked.generate(" ", stop=["<|end|>"]).finish_reason == "eos"  # an end token ends a text as such


def test_special_tokens_show_on_request(marked: LanguageModel) -> None:
    pieces, result = drain(marked, max_tokens=24, keep_special=True)
    assert result.text == "日語é<|end|>🙂ж 日語é" == "".join(pieces)
    assert drain(marked, max_tokens=40, keep_special=True, stop=["é<|end|>🙂"])[1].text == "日語"
    assert marked.generate(" ", max_tokens=40, keep_special=True).text == "日語é"  # without the end token


@pytest.mark.parametrize("method", METHODS)
def test_a_stop_token_ends_the_text_before_it(marked: LanguageModel, tokenizer: Tokenizer, method: str) -> None:
    smile = tokenizer.encode("🙂").ids
    for stop, text, count in ((smile[0], "日語é", 10), ([smile[-1], 1], "日語é\ufffd", 13)):
        pieces, result = drain(marked, method=method, max_tokens=40, stop_tokens=stop)
        assert (result.finish_reason, result.text, len(result.tokens)) == ("stop", text, count)
        assert "".join(pieces) == text
    with pytest.raises(ConfigError, match="stop token is outside the vocabulary"):
        marked.generate(" ", stop_tokens=[9999])


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_stop_tokens_need_no_tokenizer_and_hold_on_a_canvas(attention: str) -> None:
    toy = LanguageModel(ToyModel(attention=attention))
    method = "masked-diffusion" if attention == "full" else "autoregressive"
    whole = toy.generate([3, 1, 4], max_tokens=12, method=method, temperature=0.9)
    assert whole.finish_reason == "length"
    wanted = whole.tokens[7]
    found = toy.generate([3, 1, 4], max_tokens=12, method=method, temperature=0.9, stop_tokens=[wanted])
    assert found.tokens == whole.tokens[: whole.tokens.index(wanted) + 1] and found.finish_reason == "stop"


def test_a_stream_hides_the_names_of_special_tokens_piece_by_piece() -> None:
    stream, released = TextStream(lambda ids: "".join("ab\n"[i] for i in ids if i < 3), ["<x>\n<y>"], special=NAMES), []
    for token in (0, 7, 1, 7, 2, 0, 7, 2, 7, 2):  # a <x> b <x> newline a <x> newline <x> newline
        assert not stream.push(token)
        released.append(stream.release())
    assert (stream.text, stream.push(8)) == ("ab\na\n\n", True)
    assert (stream.text, "".join([*released, stream.release(is_final=True)])) == ("ab\na\n",) * 2


NAMES = {7: "<x>", 8: "<y>"}
