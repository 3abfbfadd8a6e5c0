"""Conversations: each answer is what `chat` gives, and what was said is kept, taken back, saved and read again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace import Conversation, LanguageModel
from outpace.errors import ConfigError, StorageError
from outpace.methods.registry import load_method

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}story:{{ mood or '' }}{% endif %}"
)
FIRST, SECOND = "Once upon a time there was a dog.", "The dog and the cat and the dog and the cat"


@pytest.fixture(scope="module")
def stories() -> LanguageModel:
    return outpace.load("stories", dtype="float32", context=256)


@pytest.fixture
def lm(stories: LanguageModel) -> LanguageModel:
    """The shipped model with a template, as an instruct model has one."""
    assert stories.tokenizer is not None
    stories.tokenizer.templates = {"default": TEMPLATE}
    return stories


def talk(lm: LanguageModel, **settings: Any) -> Conversation:
    return Conversation(lm, **{"max_tokens": 12, **settings})


def role(name: str, content: str) -> dict[str, str]:
    return {"role": name, "content": content}


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("method", ["autoregressive", "auto", "suffix"])
def test_answers_are_those_of_chat_whatever_is_drafted(lm: LanguageModel, method: str, temperature: float) -> None:
    held = talk(lm, system="Be brief.", method=method, temperature=temperature, seed=3)
    one, two = held.say(FIRST), held.say(SECOND)
    told = [role("system", "Be brief."), role("user", FIRST)]
    law = {"temperature": temperature, "seed": 3, "max_tokens": 12}
    assert one.tokens == lm.chat(told, **law).tokens
    told += [role("assistant", one.text), role("user", SECOND)]
    assert two.tokens == lm.chat(told, **law).tokens
    assert held.messages == [*told[1:], role("assistant", two.text)]
    assert held.told("And?") == [*told, role("assistant", two.text), role("user", "And?")]


def test_variables_and_template_reach_the_prompt(lm: LanguageModel) -> None:
    assert lm.tokenizer is not None
    held = talk(lm, variables={"mood": " sad"})
    ids = held.say(FIRST).prompt_tokens
    assert lm.tokenizer.decode(ids).endswith("story: sad")
    other = talk(lm, template="{{ messages[0].content }}!")
    assert lm.tokenizer.decode(other.say(FIRST).prompt_tokens) == f"{FIRST}!"


def test_undo_and_retry(lm: LanguageModel) -> None:
    held = talk(lm, temperature=1.0, seed=7)
    one = held.say(FIRST)
    two = held.retry()
    assert (two.seed, held.settings["seed"]) == (8, 8) and two.tokens != one.tokens
    assert two.tokens == lm.chat([role("user", FIRST)], temperature=1.0, seed=8, max_tokens=12).tokens
    assert held.messages == [role("user", FIRST), role("assistant", two.text)]
    assert held.undo() == FIRST and held.messages == []
    for empty in (held.undo, held.retry):
        with pytest.raises(ConfigError, match="Nothing was said yet"):
            empty()
    assert held.settings["seed"] == 8


def test_what_was_written_of_a_cancelled_answer_stays(lm: LanguageModel) -> None:
    held, pieces = talk(lm, max_tokens=40), list[str]()
    result = held.say(FIRST, on_text=lambda _, text: pieces.append(text), is_cancelled=lambda: len(pieces) > 2)
    assert result.finish_reason == "cancelled" and result.text == "".join(pieces) == held.messages[-1]["content"]
    before = list(held.messages)
    assert held.say(SECOND, is_cancelled=lambda: True).text == ""
    assert held.messages == before
    held.retry(is_cancelled=lambda: True)
    assert held.messages == before


def test_a_refused_message_changes_nothing(lm: LanguageModel) -> None:
    held = talk(lm)
    held.say(FIRST)
    before = list(held.messages)
    for text in ("", "\ud800", "word " * 3000):
        with pytest.raises(ConfigError):
            held.say(text)
        assert held.messages == before


def test_a_full_context_leaves_out_the_oldest_turns_and_says_so(lm: LanguageModel) -> None:
    held, most = talk(lm, max_tokens=4, system="Be brief."), lm.target.capabilities.max_positions
    text = "the dog " * (most // 8)
    results = [held.say(f"{number} {text}") for number in range(6)]
    assert [bool(result.notes) for result in results] == sorted(bool(result.notes) for result in results)
    assert not results[0].notes and "the 3 oldest turns are no longer told" in " ".join(results[-1].notes)
    assert all(len(result.tokens) == 4 for result in results)
    assert len(held.messages) == 12  # none is forgotten
    told = held.told("Now?")
    assert told[0] == role("system", "Be brief.") and told[1]["role"] == "user" and told[-1] == role("user", "Now?")
    assert told[1:-1] == held.messages[-len(told) + 2 :] and len(told) < len(held.messages)
    held.undo()
    assert held.say(f"5 {text}").tokens == results[-1].tokens


def test_plain_text_goes_on(lm: LanguageModel) -> None:
    held = talk(lm, is_plain=True)
    one, two = held.say(FIRST), held.say(SECOND)
    assert one.tokens == lm.generate(FIRST, max_tokens=12).tokens
    assert two.tokens == lm.generate(f"{FIRST}{one.text}\n{SECOND}", max_tokens=12).tokens
    lm.tokenizer.templates = {}  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"stories has no chat template\."):
        talk(lm)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_token": 3}, "no argument 'max_token'"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"method": "autos"}, "autos"),
        ({"options": {"arm": "suffix"}, "method": "auto"}, "no option 'arm'"),
        ({"num_samples": 2}, "one answer at a time"),
        ({"is_plain": True, "system": "x"}, "no system prompt"),
    ],
)
def test_settings_are_checked_at_once(lm: LanguageModel, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        talk(lm, **settings)


def test_an_answer_has_room_unless_something_says_otherwise(lm: LanguageModel) -> None:
    assert Conversation(lm).settings["max_tokens"] == 1024
    assert "max_tokens" not in Conversation(lm, max_length=50).settings


def test_a_saved_conversation_goes_on_as_if_it_had_not_stopped(lm: LanguageModel, tmp_path: Path) -> None:
    suffix = load_method("suffix").from_settings({"nodes": 6})
    law = {"temperature": 0.8, "seed": 5, "logit_bias": {3: -4.0}, "stop": ["zzz"], "method": suffix}
    held = talk(lm, system="Be kind: é", **law)
    held.say(FIRST)
    path = tmp_path / "talk.json"
    held.save(path)
    other = Conversation.load(path, lm)
    assert other.messages == held.messages and other.system == held.system and other.model == "stories"
    assert other.settings["options"]["nodes"] == 6 and other.settings["logit_bias"] == {3: -4.0}
    assert other.say(SECOND).tokens == held.say(SECOND).tokens
    assert list(tmp_path.iterdir()) == [path]


def test_a_save_that_fails_leaves_what_was_there(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    path, held = tmp_path / "talk.json", talk(lm)
    held.save(path)
    before = path.read_bytes()
    held.say(FIRST)
    with monkeypatch.context() as patched, pytest.raises(StorageError, match="cannot be written: No space left"):
        patched.setattr(os, "fsync", full)
        held.save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(StorageError, match="cannot be written"):
        held.save(tmp_path / "nowhere" / "talk.json")
    with pytest.raises(ConfigError, match="with memory cannot be saved"):
        talk(lm, memory={}).save(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "no saved conversation, or is damaged"),
        ({"kind": "outpace-trace"}, r"is no saved conversation\."),
        ({"version": 2}, "another version"),
        ({"messages": [role("assistant", "hi"), role("user", "ho")]}, "is a damaged conversation"),
        ({"messages": [role("user", "hi")]}, "is a damaged conversation"),
        ({"messages": [{"role": "user", "content": 3}, role("assistant", "")]}, "is a damaged conversation"),
        ({"messages": {}}, "is a damaged conversation"),
        ({"settings": None}, "is a damaged conversation"),
        ({"settings": {"memory": {}}}, "is a damaged conversation"),
        ({"settings": {"temperature": "hot"}}, "talk.json: temperature is 'hot'"),
        ({"settings": {"nonsense": 1}}, "talk.json: There is no argument 'nonsense'"),
        ({"settings": {"method": "nonsense"}}, "talk.json: "),
        ({"system": 4}, "is a damaged conversation"),
        ({"model": None}, "is a damaged conversation"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_sentence(
    lm: LanguageModel, tmp_path: Path, change: dict[str, Any] | None, words: str
) -> None:
    path = tmp_path / "talk.json"
    talk(lm).save(path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text[:-30] if change is None else json.dumps(json.loads(text) | change), encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        Conversation.load(path, lm)


def test_no_file_at_all(lm: LanguageModel, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match="cannot be read"):
            Conversation.load(path, lm)
