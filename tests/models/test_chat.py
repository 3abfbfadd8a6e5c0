"""Chat templates: the text is transformers' for templates in the shapes of forty families; what they may not do."""

from __future__ import annotations

import enum
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from outpace.errors import ConfigError, ModelError
from outpace.text.tokenizer import Tokenizer

FILE = Path(__file__).with_name("chat_templates.txt")
TEMPLATES = dict(re.findall(r"^=== (.*)\n((?:(?!=== ).*\n)*)", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE))
TEMPLATES = {name: text.removesuffix("\n") for name, text in TEMPLATES.items()}


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CITY = {"type": "string", "enum": ["Zürich", "Rome"], "description": "Where <to> look"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": CITY, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CALL = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "weather", "arguments": {"days": 2, "city": "Zürich"}},
}
ASKED = said("user", "  How warm is it?\n")
CALLED = [
    said("system", "Be brief."),
    ASKED,
    said("assistant", None, tool_calls=[CALL]),
    said("tool", '{"degrees": 21}', name="weather", tool_call_id="call12345"),
    said("assistant", "It is 21 degrees."),
    said("user", "And tomorrow?"),
]
TALK = [ASKED, said("assistant", "<think>\nhm\n</think>\n\n21 degrees. "), said("user", 'I\'d say <b>& "more"</b>')]
TEXTS = [{"title": "A", "text": "Sun é"}, {"title": "B", "text": "Rain"}]
PARTS = [{"type": "text", "text": "How "}, {"type": "text", "text": "warm?"}]
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "one turn": ([ASKED], {}),
    "several": (TALK, {}),
    "system": ([said("system", "Be brief. /no_think"), *TALK], {}),
    "two systems": ([said("system", "Be brief."), ASKED, said("assistant", "21"), said("system", "No."), ASKED], {}),
    "tools": ([ASKED], {"tools": [WEATHER]}),
    "no tools": ([said("system", "Be brief."), ASKED], {"tools": []}),
    "calls": (CALLED, {"tools": [WEATHER]}),
    "a result last": (CALLED[:4], {"tools": [WEATHER]}),
    "documents": ([ASKED], {"documents": TEXTS}),
    "both": ([ASKED], {"tools": [WEATHER], "documents": TEXTS}),
    "an answer last": (TALK[:2], {}),
    "reasoning": ([ASKED, said("assistant", "21", reasoning_content="Warm.")], {}),
    "reasoning of old": ([ASKED, said("assistant", "21", thinking="Warm."), ASKED], {}),
    "no content": ([ASKED, said("assistant", None), ASKED], {}),
    "no thinking": ([ASKED], {"enable_thinking": False}),
    "variables": ([ASKED], {"reasoning_effort": "high", "controls": {"length": "long"}, "date_string": "1 May"}),
    "wrong order": ([said("assistant", "Yes?"), said("assistant", "Hello?")], {}),
    "unknown role": ([said("critic", "Bad.")], {}),
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Engine(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>", "<|im_end|>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return made


@pytest.fixture(scope="module")
def ours(engine: Engine) -> Tokenizer:
    return Tokenizer(engine, {"bos_token": "<s>", "eos_token": {"content": "</s>"}}, {})


@pytest.fixture(scope="module")
def theirs(engine: Engine) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=engine, bos_token="<s>", eos_token="</s>")


def expected(theirs: PreTrainedTokenizerFast, template: str, chat: list[Any], **more: Any) -> str | None:
    """What transformers renders; None = it refuses."""
    try:
        return str(theirs.apply_chat_template(chat, chat_template=template, tokenize=False, **more))
    except Exception:  # whatever a template raises comes through
        return None


def rendered(ours: Tokenizer, template: str, chat: list[Any], **more: Any) -> str | None:
    try:
        return ours.render_chat(chat, template=template, **more)
    except ConfigError:
        return None


def with_parts(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} if m["role"] == "user" else m for m in chat]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_that_of_transformers(name: str, ours: Tokenizer, theirs: PreTrainedTokenizerFast) -> None:
    template, knows_texts = TEMPLATES[name], name not in ("llava with parts only", "smolvlm")
    seen = set()
    for what, (chat, more) in CONVERSATIONS.items():
        for is_open in (True, False):
            handed = chat if knows_texts else with_parts(chat)  # those two write nothing of a text in transformers
            want = expected(theirs, template, handed, add_generation_prompt=is_open, **more)
            assert rendered(ours, template, chat, is_open=is_open, **more) == want, (what, is_open)
            seen.add(want)
    assert len(seen - {None}) >= 5


@pytest.mark.parametrize("name", TEMPLATES)
def test_parts_and_unfinished_messages(name: str, ours: Tokenizer, theirs: PreTrainedTokenizerFast) -> None:
    template = TEMPLATES[name]
    want = expected(theirs, template, [said("user", PARTS)], add_generation_prompt=True)
    if want is None or str(PARTS) in want:  # it knows texts only, and would write a list's Python
        want = expected(theirs, template, [said("user", "How \nwarm?")], add_generation_prompt=True)
    assert want is not None and rendered(ours, template, [said("user", PARTS)]) == want
    for content in ("It is ", "It is"):
        chat = [said("user", "Hi"), said("assistant", content)]
        if name not in ("llava with parts only", "smolvlm"):
            want = expected(theirs, template, chat, continue_final_message=True)
            assert want is not None and rendered(ours, template, chat, is_continued=True) == want


def test_ids_are_those_of_transformers(ours: Tokenizer, theirs: PreTrainedTokenizerFast) -> None:
    template = TEMPLATES["llama-3"]
    want = theirs.apply_chat_template(TALK, chat_template=template, add_generation_prompt=True)["input_ids"]
    assert ours.encode_chat(TALK, template=template) == list(want)


def test_a_rendered_start_token_is_not_doubled(ours: Tokenizer) -> None:
    text = ours.render_chat(TALK, template=TEMPLATES["llama-3"])
    assert text.startswith("<s>")
    assert ours.encode(text) == ours.encode(text, is_special=False)
    assert ours.encode("x") == [256, *ours.encode("x", is_special=False)]
    assert ours.encode("<s><s>x", is_special=False)[:3].count(256) == 2


# Which template speaks


def checkpoint(directory: Path, engine: Engine, **settings: Any) -> Tokenizer:
    engine.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", **settings}))
    return Tokenizer.from_directory(directory)


NAMED = {
    "default": "plain {{ messages|length }}",
    "tool_use": "tools {{ tools|length }}",
    "rag": "{{ documents|length }}",
}
LISTED = [{"name": name, "template": text} for name, text in NAMED.items()]


def lay_files(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text(NAMED["default"])
    (directory / "additional_chat_templates").mkdir()
    for name in ("tool_use", "rag"):
        (directory / "additional_chat_templates" / f"{name}.jinja").write_text(NAMED[name])


@pytest.mark.parametrize("kind", ["list", "mapping", "files", "processor"])
def test_named_templates(kind: str, tmp_path: Path, engine: Engine) -> None:
    settings: dict[str, Any] = {"chat_template": LISTED if kind == "list" else NAMED}
    if kind == "files":
        lay_files(tmp_path)
        settings = {"chat_template": "an older one"}
    elif kind == "processor":
        (tmp_path / "chat_template.json").write_text(json.dumps(settings))
        settings = {}
    tokenizer, tools = checkpoint(tmp_path, engine, **settings), [WEATHER]
    assert tokenizer.has_chat
    assert tokenizer.render_chat([ASKED]) == "plain 1"
    assert tokenizer.render_chat([ASKED], tools=tools) == "tools 1"
    assert tokenizer.render_chat([ASKED], documents=TEXTS) == "2"  # "default" would drop them
    assert tokenizer.render_chat([ASKED], documents=TEXTS, template="rag") == "2"
    assert tokenizer.render_chat([ASKED], tools=tools, template="default") == "plain 1"
    with pytest.raises(ConfigError, match="no chat template 'tools'") as caught:
        tokenizer.render_chat([ASKED], template="tools")
    assert "'tool_use'" in caught.value.hint


def test_a_default_that_reads_documents_keeps_them(ours: Tokenizer, engine: Engine) -> None:
    named = {"default": "{% if documents %}own {{ documents|length }}{% endif %}", "rag": "rag"}
    assert Tokenizer(engine, {}, named).render_chat([ASKED], documents=TEXTS) == "own 2"


def test_names_without_a_default(engine: Engine) -> None:
    tokenizer = Tokenizer(engine, {}, {"tool_use": "{{ tools|length }}"})
    assert tokenizer.render_chat([ASKED], tools=[WEATHER]) == "1"
    with pytest.raises(ConfigError, match="no chat template 'default'") as caught:
        tokenizer.render_chat([ASKED])
    assert "tool_use" in caught.value.hint


@pytest.mark.parametrize("stated", [5, [1], [{"name": "default"}], {"default": None}])
def test_a_template_that_is_not_text(stated: Any, tmp_path: Path, engine: Engine) -> None:
    with pytest.raises(ModelError, match="not text"):
        checkpoint(tmp_path, engine, chat_template=stated)


def test_a_template_file_that_is_not_text(tmp_path: Path, engine: Engine) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(ModelError, match="not readable text"):
        checkpoint(tmp_path, engine)


# What a template is handed, and what it may do


class Speaker(str, enum.Enum):
    USER = "user"


@dataclass
class Turn:
    role: Speaker
    content: str
    image: Any = None


def test_messages_reach_a_template_as_plain_data(ours: Tokenizer) -> None:
    template = "{{ messages | tojson }}"
    turn = {
        "role": Speaker.USER,
        "content": "x",
        "n": np.int64(3),
        "seen": np.bool_(False),
        "image": np.zeros(2),
        "no": None,
    }
    plain = {"role": "user", "content": "x", "n": 3, "seen": False, "image": "<ndarray>"}
    assert json.loads(ours.render_chat([turn], template=template)) == [plain]
    assert json.loads(ours.render_chat([Turn(Speaker.USER, "x")], template=template)) == [
        {"role": "user", "content": "x"}
    ]


def look(city: str) -> None:
    """Look out of the window.

    Args:
        city: Where.
    """


def test_tools_may_be_functions(ours: Tokenizer) -> None:
    shown = json.loads(ours.render_chat([ASKED], tools=[look], template="{{ tools | tojson }}"))
    assert shown[0]["function"]["parameters"]["properties"]["city"] == {"type": "string", "description": "Where."}
    assert json.loads(ours.render_chat([ASKED], tools=WEATHER, template="{{ tools | tojson }}")) == [WEATHER]


def test_unread_variables(ours: Tokenizer) -> None:
    names = ["tools", "enable_thinking"]
    assert ours.unread_by_chat(names, "{% if tools %}{% endif %}", None, None) == ["enable_thinking"]


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ raise_exception('Say\nmore.') }}", r"refused these messages: Say more\.$"),
        ("{{ messages.append(1) }}", "refused"),
        ("{{ ''.__class__.__mro__ }}", "refused"),
        ("{% set ns = namespace(__class__=1) %}", "namespace"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "namespace"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ messages | tojson(cls=1) }}", "TypeError"),
        ("x\n{% if %}", r"cannot be read: .* \(line 2\)"),
        ("{% generation %}", "cannot be read"),
        ("{{ messages[0].parts.first }}", "refused"),
    ],
)
def test_what_goes_wrong_is_one_sentence(ours: Tokenizer, template: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        ours.render_chat([ASKED], template=template)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"messages": []}, "empty"),
        ({"messages": "Hi"}, "list of messages"),
        ({"messages": ASKED}, "list of messages"),
        ({"messages": ["Hi"]}, "a str, not a mapping"),
        ({"tools": ["weather"]}, "A tool is a str"),
        ({"tools": [lambda city: None]}, "No schema can be made"),
        ({"documents": ["text"]}, "A document is a str"),
        ({"messages": [said("user", [{"type": "image", "url": "x"}])]}, "part of type 'image'"),
        ({"messages": [said("assistant", None)], "is_continued": True}, "no text to go on with"),
    ],
)
def test_what_is_no_conversation(ours: Tokenizer, arguments: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        ours.render_chat(
            **{"messages": [ASKED], "template": "{% for m in messages %}{{ m.content }}{% endfor %}", **arguments}
        )


def test_an_end_that_the_template_drops_cannot_be_continued(ours: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="leaves out the end"):
        ours.render_chat([ASKED], template="{{ messages[0].role }}", is_continued=True)
