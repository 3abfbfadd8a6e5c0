"""tool_choice as a constraint: a model that knows nothing of tools makes calls that its format's parser reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

import outpace
from outpace.constrain import Compiler
from outpace.errors import ConfigError
from outpace.server.tools_choice import Reading, read_tools

F = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"$ref": "#/$defs/word"}},
    "required": ["a", "b"],
    "additionalProperties": False,
    "$defs": {"word": {"enum": ["x y", "z"]}},
}
G = {"type": "object", "properties": {"c": {"type": "boolean"}}, "required": ["c"], "additionalProperties": False}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": it}} for name, it in (("f", F), ("g.h", G))]
NAMED = {"type": "function", "function": {"name": "g.h"}}
TEMPLATES = {
    "hermes": "{{ tools }}<tool_call>",
    "llama3": "{{ tools }}<|python_tag|>",
    "mistral": "{{ tools }}[TOOL_CALLS]",
    "mistral args": "{{ tools }}[TOOL_CALLS][ARGS]",
    "json": "{{ tools }}",
}
ALIAS = "<|mask|>"  # a special token of the model's, which stands for a format's


class Named:
    """What is asked of a tokenizer here."""

    def __init__(self, template: str, special: Mapping[str, int]) -> None:
        self.templates, self.special_ids = {"default": template}, special


def reading(template: str, choice: Any, special: Mapping[str, int] | None = None, **more: Any) -> Reading:
    tokenizer: Any = Named(template, special or {})
    return read_tools(tokenizer, TOOLS, choice, **more)


def written(lm: outpace.LanguageModel, how: Reading, seed: int, alias: str = "") -> tuple[str, list[tuple[str, Any]]]:
    result = lm.generate("Once", max_tokens=200, temperature=1.0, seed=seed, **how.arguments)
    text = result.text.replace(ALIAS, alias) if alias else result.text
    parser = how.parser()
    for letter in text:
        parser.push(letter)
    parser.finish()
    assert result.finish_reason == "eos" and not parser.message.content, text
    return text, [(call.name, json.loads(call.arguments)) for call in parser.message.calls]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def compiler(stories: outpace.LanguageModel) -> Compiler:
    assert stories.tokenizer is not None
    return Compiler(stories.tokenizer, stories.target.capabilities.vocab_size)


@pytest.mark.parametrize("name", ["hermes", "mistral args"])
def test_a_call_is_sure_and_meets_its_schema(stories: outpace.LanguageModel, name: str) -> None:
    _, ((tool, arguments),) = written(stories, reading(TEMPLATES[name], "required", is_parallel=False), 1)
    if tool == "f":
        assert 0 <= arguments["a"] <= 99 and arguments["b"] in ("x y", "z") and len(arguments) == 2
    else:
        assert tool == "g.h" and set(arguments) == {"c"} and isinstance(arguments["c"], bool)


ONE, TWO = '{"name": "f", "%s": {"a": 7, "b": "x y"}}', '{"name": "g.h", "%s": {"c": true}}'
WRITTEN = {  # two calls, and what stands around the second one
    "hermes": ("<tool_call>\n%s\n</tool_call>\n<tool_call>\n%s\n</tool_call>", "arguments"),
    "llama3": ("%s; %s", "parameters"),
    "mistral": ("[TOOL_CALLS][%s, %s]", "arguments"),
    "mistral args": ('[TOOL_CALLS]f[ARGS]{"a": 7, "b": "x y"}[TOOL_CALLS]g.h[ARGS]{"c": true}', ""),
    "json": ("[%s, %s]", "arguments"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_several_calls_only_where_they_may_be(stories: outpace.LanguageModel, compiler: Compiler, name: str) -> None:
    shape, key = WRITTEN[name]
    text = shape % (ONE % key, TWO % key) if key else shape

    def allows(how: Reading, text: str) -> bool:
        state = compiler.compile(**how.arguments).start()
        return all(state.push(token) for token in stories.encode(text, is_special=False)) and state.is_complete

    many = reading(TEMPLATES[name], "required")
    assert allows(many, text) and not allows(many, text.replace("x y", "x"))
    for other in (reading(TEMPLATES[name], "required", is_parallel=False), reading(TEMPLATES[name], NAMED)):
        assert not allows(other, text)
    parser = many.parser()
    parser.push(text)
    parser.finish()
    assert [call.name for call in parser.message.calls] == ["f", "g.h"] and not parser.message.content


def test_marks_that_are_special_tokens_are_written_as_such(stories: outpace.LanguageModel) -> None:
    special = {"[TOOL_CALLS]": stories.tokenizer.special_ids[ALIAS]}  # type: ignore[union-attr]
    how = reading(TEMPLATES["mistral"], NAMED, special)
    assert how.arguments["keep_special"] and how.hidden == set(special)
    text, calls = written(stories, how, 0, "[TOOL_CALLS]")
    assert text.startswith('[TOOL_CALLS][{"name": "g.h"') and len(calls) == 1


def test_reasoning_stays_free_before_what_is_constrained(stories: outpace.LanguageModel) -> None:
    tokenizer: Any = Named("<think> </think>", {"</think>": stories.tokenizer.special_ids[ALIAS]})  # type: ignore[union-attr]
    how = read_tools(tokenizer, prompt="user: hi <think>\n", answer={"json_schema": G})
    assert how.is_open and how.names == ()
    bias = {stories.tokenizer.special_ids[ALIAS]: 12.0}  # type: ignore[union-attr]
    result = stories.generate("Once", max_tokens=99, temperature=1.0, seed=1, logit_bias=bias, **how.arguments)
    parser = how.parser()
    parser.push(result.text.replace(ALIAS, "</think>"))
    parser.finish()
    assert result.finish_reason == "eos" and parser.message.reasoning
    assert set(json.loads(parser.message.content)) == {"c"}
    spelled = read_tools(Named("<think> </think>", {}), answer={"json_schema": G})  # type: ignore[arg-type]
    assert set(json.loads(stories.generate("Once", max_tokens=99, **spelled.arguments).text)) == {"c"}


def test_auto_and_none_leave_the_text_free() -> None:
    auto, none = reading(TEMPLATES["hermes"], None), reading(TEMPLATES["hermes"], "none")
    assert auto.arguments == none.arguments == {} and auto.names == ("f", "g.h") and none.names == ()
    assert auto.tools == TOOLS and none.tools is None
    strict: Any = [{"type": "function", "function": {"name": "f", "strict": True}}]
    assert read_tools(Named(TEMPLATES["hermes"], {}), strict).notes  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([{"type": "web_search"}], None, "type 'web_search'"),
        (["f"], None, "A tool is no function"),
        ([{"type": "function", "function": {"name": "a b"}}], None, "no name that can be used"),
        ([{"type": "function", "function": {"name": "a", "parameters": []}}], None, "parameters of a"),
        ([*TOOLS, TOOLS[0]], None, "Two tools have one name"),
        (TOOLS * 1000, None, "too many"),
        ([], "required", "there are no tools"),
        (TOOLS, "always", "another kind"),
        (TOOLS, {"type": "function", "function": {"name": "ff"}}, "'ff', which is no tool"),
        (TOOLS, {"type": "function"}, "another kind"),
        ([{"type": "function", "function": {"name": "a", "parameters": {"not": {}}}}], "required", "not"),
    ],
)
def test_bad_tools_are_one_sentence(tools: Any, choice: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_tools(Named("", {}), tools, choice)  # type: ignore[arg-type]
    assert caught.value.hint
