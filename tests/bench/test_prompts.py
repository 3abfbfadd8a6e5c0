from __future__ import annotations

import copy
from pathlib import Path

import pytest

import outpace
from outpace.bench.options import BenchOptions, MicroOptions
from outpace.bench.prompts import Prompt, encode_prompt, read_prompts, set_names
from outpace.bench.stats import repeated_share
from outpace.errors import ConfigError

LICENCES = {"CDLA-Sharing-1.0", "MIT", "CC-BY-4.0", "Apache-2.0"}


def test_shipped_sets() -> None:
    assert set_names() == ("ask-code", "ask-open", "ask-text", "code", "copy", "stories")
    for name in set_names():
        prompts = read_prompts(name)
        assert len(prompts) == 12
        assert len({prompt.id for prompt in prompts}) == len({prompt.text for prompt in prompts}) == 12
        assert all(prompt.set == name and prompt.text.strip() for prompt in prompts)
        assert all(prompt.is_asked == name.startswith("ask") for prompt in prompts)
        assert all(prompt.licence in LICENCES and prompt.origin for prompt in prompts)
    assert len(read_prompts("code", 5)) == 5


def test_copy_prompts_invite_copying() -> None:
    """Each repeats a pattern of its own, with small edits: many of its word 3-grams occur twice."""
    for prompt in read_prompts("copy"):
        words = prompt.text.split()
        code = {word: number for number, word in enumerate(dict.fromkeys(words))}
        assert repeated_share([code[word] for word in words], 3) > 0.3, prompt.id


def test_what_is_asked_is_framed_where_there_is_a_template() -> None:
    stories = outpace.load("stories")
    asked, told = Prompt("mine", "0", "Who is Tim?", is_asked=True), Prompt("mine", "1", "Who is Tim?")
    assert encode_prompt(stories, asked) == encode_prompt(stories, told) == stories.encode("Who is Tim?")
    assert stories.tokenizer is not None
    framed = copy.copy(stories.tokenizer)
    framed.templates = {"default": "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}"}
    lm = stories.ending_with(stories.end_tokens)
    lm.tokenizer = framed
    assert encode_prompt(lm, asked) == lm.encode_chat([{"role": "user", "content": "Who is Tim?"}])
    assert encode_prompt(lm, told) == lm.encode("Who is Tim?") != encode_prompt(lm, asked)


def test_files_of_ones_own(tmp_path: Path) -> None:
    lines = tmp_path / "mine.jsonl"
    lines.write_text('{"id": "a", "text": "one"}\n\n{"user": "two"}\n')
    found = [(p.set, p.id, p.text, p.is_asked) for p in read_prompts(str(lines))]
    assert found == [("mine", "a", "one", False), ("mine", "2", "two", True)]
    plain = tmp_path / "mine.txt"
    plain.write_text("one\nstill one\n\ntwo\n")
    assert [prompt.text for prompt in read_prompts(str(plain))] == ["one\nstill one", "two\n"]
    lines.write_text("no json\n")
    with pytest.raises(ConfigError, match="Line 1"):
        read_prompts(str(lines))
    plain.write_text("\n")
    with pytest.raises(ConfigError, match="holds no prompt"):
        read_prompts(str(plain))
    with pytest.raises(ConfigError) as caught:
        read_prompts("storys")
    assert "stories" in caught.value.hint


@pytest.mark.parametrize(
    "wrong",
    [
        {"paths": ("fast",)},
        {"peers": ("vllm",)},
        {"max_tokens": 0},
        {"repeats": 0},
        {"prompts": ()},
        {"temperatures": (-1.0,)},
        {"temperatures": (float("nan"),)},
    ],
)
def test_options_that_cannot_be_used(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        BenchOptions(**wrong)  # type: ignore[arg-type]


def test_micro_options_that_cannot_be_used() -> None:
    for wrong in ({"parts": ("speed",)}, {"sizes": ("7b",)}, {"dtypes": ("int4",)}, {"repeats": 0}, {"widths": (0,)}):
        with pytest.raises(ConfigError):
            MicroOptions(**wrong)  # type: ignore[arg-type]
