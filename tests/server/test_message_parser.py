"""Reasoning, content and tool calls out of a text: the same whatever way the text was cut."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from outpace.errors import ConfigError
from outpace.server.reasoning import TAGS, Tags, choose_tags
from outpace.server.tools import MessageParser, needs_special
from outpace.server.tools_calls import FORMATS, choose_format
from outpace.server.tools_message import Call, Delta, Message

TOOLS = ("look_up", "add", "stop.now")
THINK = TAGS["think"]
A, B = '{"q": "a } b"}', "{}"


def parser(form: str | None, tags: Tags | None = THINK, **more: object) -> MessageParser:
    numbers = iter(range(1000))
    return MessageParser(FORMATS[form] if form else None, tags, TOOLS, new_id=lambda: f"id{next(numbers)}", **more)  # type: ignore[arg-type]


def added_up(deltas: list[Delta]) -> Message:
    """What a client makes of deltas, by the rules of the wire: id and name once and first, arguments appended."""
    message = Message()
    for delta in deltas:
        assert sum(map(bool, (delta.content, delta.reasoning, delta.call is not None))) == 1
        message.content += delta.content
        message.reasoning += delta.reasoning
        if delta.call is not None and delta.name:
            assert delta.call == len(message.calls) and delta.id and not delta.arguments
            message.calls.append(Call(delta.id, delta.name))
        elif delta.call is not None:
            assert delta.call == len(message.calls) - 1 and delta.arguments and not delta.id
            message.calls[-1].arguments += delta.arguments
    return message


def read(pieces: list[str], form: str | None, **more: object) -> Message:
    it = parser(form, **more)
    deltas = [delta for piece in pieces for delta in it.push(piece)] + it.finish()
    assert added_up(deltas) == it.message
    return it.message


def cuts(text: str, source: random.Random, most: int) -> list[str]:
    found = []
    while text:
        size = source.randint(1, most)
        found.append(text[:size])
        text = text[size:]
    return found


def every_way(text: str, form: str | None, **more: object) -> Message:
    """The message, which whole, letter by letter and at random has to be the same."""
    whole = read([text], form, **more)
    assert read(list(text), form, **more) == whole
    for seed in range(12):
        assert read(cuts(text, random.Random(seed), (2, 5, 30)[seed % 3]), form, **more) == whole
    return whole


def said(content: str = "", reasoning: str = "", *calls: tuple[str, str]) -> Message:
    return Message(content, reasoning, [Call(f"id{number}", *call) for number, call in enumerate(calls)])


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


ONE, TWO = ("look_up", A), ("add", B)

# What production servers broke on: the pieces as they came, and what they say.
PATTERNS = {
    "end of thinking, text and call start in one": (
        ["<think>", "hm", f"</think>Wait.{hermes(*ONE)[:20]}", hermes(*ONE)[20:]],
        said("Wait.", "hm", ONE),
    ),
    "call start in mid-delta": (
        ["Let me", f" see. {hermes(*ONE)[:14]}", hermes(*ONE)[14:]],
        said("Let me see.", "", ONE),
    ),
    "call end and newline": ([hermes(*ONE)[:-3], hermes(*ONE)[-3:] + "\n"], said("", "", ONE)),
    "call end and more text": ([hermes(*ONE)[:-3], hermes(*ONE)[-3:] + " So", " be it."], said("So be it.", "", ONE)),
    "a whole call in one": (["Hm.", hermes(*ONE)], said("Hm.", "", ONE)),
    "several calls in one": ([hermes(*ONE) + "\n" + hermes(*TWO)], said("", "", ONE, TWO)),
    "call end fused with the next start": (
        [hermes(*ONE)[: -len("</tool_call>")], "</tool_call><tool_call>", hermes(*TWO)[len("<tool_call>") :]],
        said("", "", ONE, TWO),
    ),
    "end-of-thinking tag over two": (["<think>a</th", "ink>b"], said("b", "a")),
    "a tag's beginning that is none": (["<think>a</th", "at>b</think>"], said("", "a</that>b")),
    "thinking and a call, no text": (["<think>\na\n</think>\n\n", hermes(*TWO)], said("", "a", TWO)),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_boundary_patterns(name: str) -> None:
    pieces, expected = PATTERNS[name]
    assert read(pieces, "hermes") == expected
    assert every_way("".join(pieces), "hermes") == expected


WRITTEN = {
    "hermes": lambda calls: "\n".join(hermes(*call) for call in calls),
    "llama3": lambda calls: "; ".join(f'{{"name": "{name}", "parameters": {text}}}' for name, text in calls),
    "llama3 marked": lambda calls: "<|python_tag|>" + WRITTEN["llama3"](calls),
    "mistral": lambda calls: "[TOOL_CALLS]" + WRITTEN["json"](calls),
    "mistral new": lambda calls: "".join(f"[TOOL_CALLS]{name}{text}" for name, text in calls),
    "mistral args": lambda calls: "".join(f"[TOOL_CALLS]{name}[CALL_ID]a1b2[ARGS]{text}" for name, text in calls),
    "json": lambda calls: "[" + ", ".join(f'{{"arguments": {text}, "name": "{name}"}}' for name, text in calls) + "]",
}


def random_value(source: random.Random, depth: int = 0) -> object:
    letters = ['"', "\\", "\n", "}", "]", "é🙂", "</tool_call>", "<think>", "[TOOL_CALLS]", "x", " ", "\u2028"]
    kind = source.randrange(7 if depth < 3 else 5)
    if kind == 5:
        return [random_value(source, depth + 1) for _ in range(source.randrange(4))]
    if kind == 6:
        return {f"k{number}": random_value(source, depth + 1) for number in range(source.randrange(4))}
    text = "".join(source.choices(letters, k=source.randrange(6)))
    return [text, source.randint(-(10**20), 10**20), source.uniform(-1e9, 1e9), source.choice([True, False]), None][
        kind
    ]


def random_messages(count: int) -> Iterator[tuple[str, str, Message]]:
    """Format, text and what it says, made together and without a parser."""
    source = random.Random(5)
    for _ in range(count):
        style = source.choice(list(WRITTEN))
        calls = []
        for _ in range(source.randint(1, 3)):
            value = {f"k{number}": random_value(source) for number in range(source.randrange(3))}
            calls.append((source.choice(TOOLS), json.dumps(value, ensure_ascii=source.random() < 0.5)))
        reasoning = source.choice(["", "so < it > is", "a\nb </thin k>"])
        is_bare = style in ("llama3", "json")
        content = "" if is_bare else source.choice(["", "I will look.", "1 < 2 [TOOL\n<tool"])
        behind = source.choice(["", "\n", "  "])
        text = f"<think>\n{reasoning}\n</think>\n\n" if reasoning else ""
        yield style.split()[0], text + content + WRITTEN[style](calls) + behind, said(content, reasoning, *calls)


def test_random_messages_are_read_as_they_were_written() -> None:
    for form, text, expected in random_messages(150):
        assert every_way(text, form) == expected, text


def test_random_rubbish_is_read_in_one_way_and_nothing_is_lost() -> None:
    parts = [
        "<tool_call>",
        "</tool_call>",
        '{"name": "add", ',
        '"arguments": ',
        "[TOOL_CALLS]",
        "<|python_tag|>",
        "tru",
    ]
    parts += ["tru", *'{}"add,[]\\1\n ;:', '"name"', "<think>", "</think>", '{"name": "add", "parameters": {"a": 1']
    source = random.Random(1)
    num_plain = 0
    for number in range(400):
        text = "".join(source.choices(parts, k=source.randint(1, 12)))
        form = [*FORMATS][number % len(FORMATS)]
        message = every_way(text, form, tags=None)
        if not message.calls:
            num_plain += 1
            assert message.content == text
    assert 100 < num_plain < 400


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", '<tool_call>{"name": "add", "arguments": {bad}}</tool_call> and on'),
        ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "add", "argum'),
        ("hermes", '<tool_call>{"name": "add", "arguments": "no object"}</tool_call>'),
        ("hermes", "<tool_call>" * 3),
        ("hermes", '<tool_call>{"arguments": ' + "[" * 500),
        ("llama3", '<|python_tag|>brave_search.call(query="x")'),
        ("llama3", ' {"answer": "add"}'),
        ("llama3", '{"name": "add"'),
        ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {'),
        ("mistral", "[TOOL_CALLS]unknown{}"),
        ("mistral", "[TOOL_CALLS][]"),
        ("json", "[1, 2]"),
        ("json", 'So: {"name": "add", "arguments": {}}'),
        ("json", "{}"),
    ],
)
def test_what_is_no_call_is_content_whole(form: str, text: str) -> None:
    assert every_way(text, form) == said(text)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('<tool_call>{"name": "add", "arguments": {"a": 1}</tool_call>!', "!", [("add", '{"a": 1}')]),  # a brace lacks
        ('<tool_call>{"name": "add", "arguments": {"a": 1}}', "", [("add", '{"a": 1}')]),  # the end lacks
        ('<tool_call>{"name": "add", "arguments": {"a": "cut off', "", [("add", '{"a": "cut off')]),
        ('<tool_call>{"name": "add", "arguments": {"a": bad}}</tool_call>!', "!", [("add", '{"a": bad}}')]),
        ('<tool_call>{"name": "add", "arguments": {}, "more": 1}</tool_call>', "", [("add", "{}")]),
        ('<tool_call>{"arguments": "{\\"a\\": 1}", "name": "add"}</tool_call>', "", [("add", '{"a": 1}')]),
        ('<tool_call>{"name": "add", "arguments": null}</tool_call>', "", [("add", "{}")]),
        ('<tool_call>{"name": "add"}</tool_call>', "", [("add", "{}")]),
        ("<tool_call>{bad}</tool_call>" + hermes("add", "{}"), "<tool_call>{bad}</tool_call>", [("add", "{}")]),
    ],
)
def test_calls_that_are_not_as_they_should_be(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert every_way(text, "hermes") == said(content, "", *calls)


def test_arguments_are_told_while_they_come() -> None:
    it, text = parser("hermes"), hermes("look_up", '{"q": "' + "z" * 100 + '"}')
    pieces = [delta for letter in text for delta in it.push(letter)]
    assert [delta.name for delta in pieces][:2] == ["look_up", ""] and len(pieces) > 100


def test_reasoning_may_be_open_at_the_start_and_at_the_end() -> None:
    assert THINK.is_open("<|im_start|>assistant\n<think>\n") and not THINK.is_open("<think>\n\n</think>\n\n")
    assert every_way("a\n</think>\n\nb ", None, is_open=True) == said("b ", "a")
    assert every_way("<think>a <tool_call>", "hermes") == said("", "a <tool_call>")
    it = parser(None)
    seen = [bool(it.push(piece)) and it.is_reasoning for piece in ("<think>", "a", "b", "</think>", "c")]
    assert seen == [False, True, True, False, False]
    assert every_way(" plain \n", None) == said(" plain \n")
    assert every_way("x<think>a</think>", None) == said("x<think>a</think>")


def test_one_call_is_enough_where_calls_are_not_parallel() -> None:
    for form, text in {
        "hermes": hermes(*ONE) + hermes(*TWO),
        "llama3": WRITTEN["llama3"]([ONE, TWO]),
        "mistral": WRITTEN["mistral new"]([ONE, TWO]),
        "json": WRITTEN["json"]([ONE, TWO]),
    }.items():
        it = parser(form, is_parallel=False)
        for letter in text:
            it.push(letter)
        it.finish()
        assert it.is_done and [(call.name, call.arguments) for call in it.message.calls] == [ONE]


def test_special_tokens_are_hidden_and_marks_among_them_are_not() -> None:
    special = ["[TOOL_CALLS]", "<|x|>", "<|x|>y", "[ARGS]"]
    assert needs_special(FORMATS["mistral"], None, special) and not needs_special(FORMATS["hermes"], THINK, special)
    text = "a<|x|>b<|x|>yc<|x|>[TOOL_CALLS]add[ARGS]{}<|x|>"
    assert every_way(text, "mistral", hidden=special) == said("abc", "", ("add", "{}"))


def test_without_tools_or_format_nothing_is_a_call() -> None:
    text = hermes("add", "{}")
    assert every_way(text, None) == said(text)
    it = MessageParser(FORMATS["hermes"], None, ())
    assert [delta.content for delta in it.push(text)] == [text]


def test_names_of_formats_and_what_templates_have() -> None:
    assert choose_format("auto", "{% if tools %}<tool_call>") is FORMATS["hermes"]
    assert choose_format("auto", "{% if tools %}<|python_tag|>{{ ipython }}") is FORMATS["llama3"]
    assert choose_format("auto", "{% if tools %}<|start_header_id|>ipython") is FORMATS["llama3"]
    assert choose_format("auto", "{{ tools }}[TOOL_CALLS]") is FORMATS["mistral"]
    assert choose_format("auto", "{{ tools }}") is FORMATS["json"]
    assert choose_format("auto", "{{ messages }}") is None and choose_format("none") is None
    assert choose_tags("auto", "x.split('</think>')") is THINK and choose_tags("auto", "") is None
    assert choose_tags("mistral") == Tags("[THINK]", "[/THINK]")
    with pytest.raises(ConfigError, match="hermez") as caught:
        choose_format("hermez")
    assert "'hermes'" in caught.value.hint
    with pytest.raises(ConfigError, match="thinks"):
        choose_tags("thinks")
    assert len(FORMATS["mistral"].new_id()) == 9 and FORMATS["json"].new_id().startswith("call_")
