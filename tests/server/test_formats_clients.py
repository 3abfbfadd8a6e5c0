"""/v1/responses, /v1/messages and calls in chats through the official clients; an engine writes given tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import torch
from scripted import PATIENCE_S, Scripted, listening
from tokenizers import Tokenizer as Library

import outpace
from outpace.engine.face import Ask, Piece, Ticket, Token
from outpace.errors import ConfigError
from outpace.server import responses
from outpace.server.settings import ServerSettings
from outpace.text.tokenizer import Tokenizer

TEMPLATE = (
    "{% set nl = '\n' %}{% if tools %}<tool_call> {% for t in tools %}{{ t | tojson }}{% endfor %}{{ nl }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content }}{% for c in m.tool_calls %}<tool_call>{{ c.function.arguments.q }}</tool_call>"
    "{% endfor %}{{ nl }}{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking %}<think>{% endif %}{% endif %}"
)
THOUGHT = ["<th", "ink>", "Let ", "me", " see.</thi", "nk>\n\nI"]
CALLS = [' look.\n<tool_call>{"name": "look_up", ', '"argum', 'ents": {"q": "a', '"}}</tool_call>\n<tool_call>']
CALLS += ['{"name": "add", "arguments": {}}', "</tool_call>"]
STEPS = [THOUGHT[:3], THOUGHT[3:] + CALLS[:3], CALLS[3:]]  # what one step each made final
ONLY = {"additionalProperties": False}
SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}}
TOOLS: Any = [
    {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "add"}},
]
WORD = {"type": "object", "properties": {"q": {"type": "string", "maxLength": 12}}, "required": ["q"]}
STRICT: Any = [{"type": "function", "function": {"name": "look_up", "parameters": {**WORD, **ONLY}}}]
FLAT: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
CLAUDES: Any = [{"name": tool["function"]["name"], "input_schema": SCHEMA} for tool in TOOLS]
ASKED: Any = {"model": "agent", "input": "hi", "tools": FLAT, "stream": True}
HI: Any = [{"role": "user", "content": "hi"}]


class Steps(Scripted):
    """Writes tokens in given steps."""

    def __init__(self, tokenizer: Library) -> None:
        super().__init__(ends=True, finish="eos")
        self.tokenizer = Tokenizer(tokenizer, {}, {"default": TEMPLATE})
        self.steps: Sequence[Sequence[str]] = STEPS

    def say(self, steps: Sequence[Sequence[str]] = STEPS, finish: str = "eos") -> None:
        self.steps, self.finish = steps, finish
        self.words = [word for step in steps for word in step]

    async def submit(self, ask: Ask) -> Ticket:
        found: Any = await super().submit(ask)
        found._read = self._read  # the pieces of whole steps in place of single words
        return found  # type: ignore[no-any-return]

    async def _read(self) -> AsyncIterator[Piece]:
        for number, step in enumerate(self.steps):
            is_last = number == len(self.steps) - 1
            yield Piece(0, [Token(7, word) for word in step], self.finish if is_last else None)

    @property
    def prompt(self) -> str:
        """What the template made of the last request."""
        assert self.tokenizer is not None
        return self.tokenizer.decode(list(self.asks[-1].prompt))  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def face(tokenizer: Library) -> Steps:
    return Steps(tokenizer)


@pytest.fixture(scope="module")
def url(face: Steps, stories: outpace.LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the scripted engine, of the shipped model, and of that with a chat template that knows tools."""
    folder = tmp_path_factory.mktemp("real") / "real"
    shutil.copytree(Path(outpace.__file__).parent / "zoo" / "stories", folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    engines = {"agent": face, "stories": outpace.Engine(stories), "real": outpace.Engine(str(folder))}
    with listening(engines, ServerSettings(drain_s=0)) as found:
        yield found


@pytest.fixture(autouse=True)
def script(face: Steps) -> None:
    face.say()
    face.asks.clear()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S) as found:
        yield found


@pytest.fixture(scope="module")
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE_S) as found:
        yield found


# Chats


def test_a_chat_streams_calls_as_the_client_reads_them(client: openai.OpenAI) -> None:
    asked: Any = {"model": "agent", "messages": HI, "tools": TOOLS}
    whole = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0]
    for choice in (whole, final):
        assert choice.finish_reason == "tool_calls" and choice.message.content == "I look."
        calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
        assert calls == [("look_up", '{"q": "a"}'), ("add", "{}")]
    assert whole.message.model_extra == {"reasoning": "Let me see.", "reasoning_content": "Let me see."}
    pieces = [event.arguments_delta for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert "".join(pieces) == '{"q": "a"}{}' and len(pieces) > 2


def test_what_was_called_is_told_to_the_template_as_an_object(client: openai.OpenAI, face: Steps) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"q": "a"}'}}
    turns: Any = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    turns.append({"role": "tool", "tool_call_id": "c1", "content": "b"})
    client.chat.completions.create(model="agent", messages=[*HI, *turns])
    assert "<tool_call>a</tool_call>\n<tool>b\n<assistant>" in face.prompt


def test_one_call_is_enough_and_no_tool_is_called_where_none_may_be(client: openai.OpenAI, face: Steps) -> None:
    asked: Any = {"model": "agent", "messages": HI, "tools": TOOLS}
    one = client.chat.completions.create(**asked, parallel_tool_calls=False).choices[0]
    assert [call.function.name for call in one.message.tool_calls or ()] == ["look_up"]
    none = client.chat.completions.create(**asked, tool_choice="none").choices[0]
    assert not none.message.tool_calls and "<tool_call>" in (none.message.content or "")
    assert "look_up" not in face.prompt
    named: Any = {"type": "function", "function": {"name": "add"}}
    client.chat.completions.create(**asked, tool_choice=named)
    grammar = face.asks[-1].arguments["grammar"]
    assert '"add' in grammar.replace("\\", "") and "look_up" not in grammar
    with pytest.raises(openai.BadRequestError, match="look_op"):
        client.chat.completions.create(**asked, tool_choice={"type": "function", "function": {"name": "look_op"}})


def test_the_model_is_stopped_behind_the_one_call(tokenizer: Library, serve: Callable[..., str]) -> None:
    face = Scripted([word for step in STEPS for word in step])  # ends only when it is cancelled
    face.tokenizer = Tokenizer(tokenizer, {}, {"default": TEMPLATE})
    body = {"messages": HI, "tools": TOOLS, "parallel_tool_calls": False}
    told = httpx.post(f"{serve(face, max_requests=9)}/v1/chat/completions", json=body, timeout=PATIENCE_S)
    found = told.json()["choices"][0]
    assert found["finish_reason"] == "tool_calls" and face.cancelled.is_set()
    assert [call["function"]["name"] for call in found["message"]["tool_calls"]] == ["look_up"]


def test_formats_may_be_named(tokenizer: Library, serve: Callable[..., str]) -> None:
    face = Steps(tokenizer)
    face.say()
    url = serve(face, tool_format="mistral", reasoning_format="none")
    found = httpx.post(f"{url}/v1/chat/completions", json={"messages": HI, "tools": TOOLS}, timeout=PATIENCE_S).json()
    assert found["choices"][0]["message"]["content"] == "".join(face.words)
    with pytest.raises(ConfigError, match="tool_format"):
        ServerSettings(tool_format="hermez")


def test_what_is_drafted_changes_neither_calls_nor_where_a_text_stops(client: openai.OpenAI) -> None:
    """Blocks of several tokens, with a stop string or the end within them, from a real engine."""
    said = "Once upon a time there was a cat. The cat was big and the cat was happy. Once upon a time there was"
    messages: Any = [{"role": "user", "content": said}]
    named: Any = {"type": "function", "function": {"name": "look_up"}}
    forced: Any = {"tools": STRICT, "tool_choice": named, "max_tokens": 60}
    free: Any = {"max_tokens": 60, "stop": ["its home. The", "zebra"]}
    for asked in (forced, free):
        common: Any = {"model": "real", "messages": messages, "seed": 0, "temperature": 1, **asked}
        plain = client.chat.completions.create(**common, extra_body={"outpace": {"draft": 0}}).choices[0]
        drafting: Any = {
            "extra_body": {"outpace": {"method": "prompt-lookup"}},
            "stream_options": {"include_usage": True},
        }
        with client.chat.completions.stream(**common, **drafting) as stream:
            final = stream.get_final_completion()
        drafted, usage = final.choices[0], final.usage
        assert usage and usage.model_extra and usage.model_extra["outpace"]["accepted"] > 0
        calls, others = (
            [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]  # type: ignore[union-attr]
            for choice in (plain, drafted)
        )
        assert calls == others and (drafted.message.content or None) == plain.message.content
        assert drafted.finish_reason == plain.finish_reason
        if asked is forced:
            assert calls[0][0] == "look_up" and set(json.loads(calls[0][1])) == {"q"}
        else:
            assert plain.finish_reason == "stop" and plain.message.content and plain.message.content.endswith("found ")


# Responses


def test_a_response_has_its_items(client: openai.OpenAI, face: Steps) -> None:
    told = client.responses.create(
        model="agent", input="hi", instructions="Be brief.", tools=FLAT, max_output_tokens=99
    )
    assert face.prompt.split("\n", 1)[1] == "<system>Be brief.\n<user>hi\n<assistant>"
    assert face.asks[-1].arguments["max_tokens"] == 99
    reasoning, message, look_up, add = told.output
    assert reasoning.type == "reasoning" and reasoning.content and reasoning.content[0].text == "Let me see."
    assert message.type == "message" and told.output_text == "I look."
    assert look_up.type == add.type == "function_call"
    assert [(call.name, call.arguments) for call in (look_up, add)] == [("look_up", '{"q": "a"}'), ("add", "{}")]
    assert look_up.call_id != look_up.id and told.status == "completed" and told.incomplete_details is None
    usage = told.usage
    assert usage and usage.output_tokens == 12 and usage.output_tokens_details.reasoning_tokens == 5
    assert usage.total_tokens == usage.input_tokens + 12 and usage.input_tokens > 5


ORDER = [
    "response.created",
    "response.in_progress",
    *("response.output_item.added", "response.content_part.added", "response.reasoning_text.delta"),
    *("response.reasoning_text.done", "response.content_part.done", "response.output_item.done"),
    *("response.output_item.added", "response.content_part.added", "response.output_text.delta"),
    *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
    *("response.output_item.added", "response.function_call_arguments.delta"),
    *("response.function_call_arguments.done", "response.output_item.done") * 1,
    *("response.output_item.added", "response.function_call_arguments.delta"),
    *("response.function_call_arguments.done", "response.output_item.done"),
    "response.completed",
]


def test_a_response_streams_its_events_in_order(client: openai.OpenAI) -> None:
    with client.responses.stream(model="agent", input="hi", tools=FLAT) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert [kind for at, kind in enumerate(kinds) if at == 0 or kind != kinds[at - 1]] == ORDER
    assert [event.sequence_number for event in events] == list(range(len(events)))
    whole = client.responses.create(model="agent", input="hi", tools=FLAT)
    (last,) = [event.response for event in client.responses.create(**ASKED) if event.type == "response.completed"]
    without: Any = {"id", "call_id"}
    assert [it.model_dump(exclude=without) for it in last.output] == [
        it.model_dump(exclude=without) for it in whole.output
    ]
    assert final.output_text == whole.output_text
    deltas = [event for event in events if event.type == "response.function_call_arguments.delta"]
    assert [event.output_index for event in deltas] == [2] * (len(deltas) - 1) + [3]
    assert "".join(event.delta for event in deltas) == '{"q": "a"}{}'


def test_a_response_goes_on_with_items_or_with_a_stored_one(client: openai.OpenAI, face: Steps) -> None:
    first = client.responses.create(model="agent", input="hi", tools=FLAT)
    answer: Any = {"type": "function_call_output", "call_id": first.output[2].call_id, "output": "b"}  # type: ignore[union-attr]
    said = "<user>hi\n<assistant><think>Let me see.</think>I look.<tool_call>a</tool_call><tool_call></tool_call>\n"
    client.responses.create(model="agent", input=[answer], previous_response_id=first.id, store=False)
    assert face.prompt == f"{said}<tool>b\n<assistant>"
    items: Any = [item.model_dump() for item in first.output]
    client.responses.create(model="agent", input=[{"role": "user", "content": "hi"}, *items, answer])
    assert face.prompt == f"{said}<tool>b\n<assistant>"
    assert client.responses.retrieve(first.id).output_text == "I look."
    client.responses.delete(first.id)
    for call in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError):
            call(first.id)
    with pytest.raises(openai.NotFoundError, match="Send the conversation whole"):
        client.responses.create(model="agent", input="x", previous_response_id=first.id)


def test_stored_responses_give_way_to_newer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "_MOST_KEPT", 2)
    monkeypatch.setattr(responses, "_MOST_KEPT_BYTES", 2000)
    store = responses.Store()
    for number in range(4):
        store.add({"id": f"r{number}"}, [{"role": "user", "content": "x"}])
    assert list(store.kept) == ["r2", "r3"]
    store.add({"id": "large"}, [{"role": "user", "content": "x" * 1950}])
    assert list(store.kept) == ["large"] and store.size == store.kept["large"].size
    store.add({"id": "larger"}, [{"role": "user", "content": "x" * 2000}])
    assert not store.kept and store.size == 0


def test_a_response_that_was_cut_and_one_that_failed(client: openai.OpenAI, face: Steps) -> None:
    face.say([["Once ", "upon"]], "length")
    told = client.responses.create(model="agent", input="hi", store=False)
    assert told.status == "incomplete" and told.incomplete_details
    assert told.incomplete_details.reason == "max_output_tokens" and told.output[0].status == "incomplete"  # type: ignore[union-attr]
    events = list(client.responses.create(model="agent", input="hi", stream=True))
    assert [event.type for event in events][-2:] == ["response.output_item.done", "response.incomplete"]
    face.say([["Once"]], "error")
    events = list(client.responses.create(model="agent", input="hi", stream=True))
    assert events[-1].type == "response.failed" and events[-1].response.error
    assert events[-1].response.error.message == "A note."
    with pytest.raises(openai.BadRequestError, match="A note"):
        client.responses.create(model="agent", input="hi")


def test_a_response_thinks_and_keeps_to_a_form(client: openai.OpenAI, face: Steps) -> None:
    form: Any = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}
    face.say([["so</think>", '{"q": ""}']])
    told = client.responses.create(model="agent", input="hi", text=form, reasoning={"effort": "high"})
    assert told.output_text == '{"q": ""}' and face.prompt.endswith("<assistant><think>")
    assert face.asks[-1].arguments["grammar"].startswith("start: thought start_0")
    assert told.model_dump(by_alias=True)["text"]["format"]["schema"] == SCHEMA


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("background", True),
        ("conversation", "c1"),
        ("prompt", {"id": "p"}),
        ("tools", [{"type": "web_search"}]),
        ("tool_choice", {"type": "web_search"}),
        ("include", ["message.output_text.logprobs"]),
        ("truncation", "auto"),
        ("input", [{"type": "item_reference", "id": "x"}]),
        ("input", [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]),
        ("input", [{"type": "function_call_output", "output": "x"}]),
        ("input", [{"role": "oracle", "content": "x"}]),
        ("input", 3),
        ("max_output_tokens", 0),
        ("text", {"format": {"type": "xml"}}),
        ("reasoning", {"effort": 3}),
    ],
)
def test_what_responses_do_not_serve_is_refused_by_name(url: str, field: str, value: Any) -> None:
    found = httpx.post(f"{url}/v1/responses", json={"model": "agent", "input": "hi", field: value}, timeout=PATIENCE_S)
    error = found.json()["error"]
    name = {"text": "response_format", "reasoning": "reasoning_effort"}.get(field, field)
    assert found.status_code == 400 and str(error["param"]).startswith(name), error


# Messages


def test_a_message_has_its_blocks(claude: anthropic.Anthropic, face: Steps) -> None:
    asked: Any = {"max_tokens": 99, "system": "Be brief.", "tools": CLAUDES, "extra_body": {"top_k": 3}}
    told = claude.messages.create(model="agent", messages=HI, **asked)
    assert face.prompt.split("\n", 1)[1] == "<system>Be brief.\n<user>hi\n<assistant>"
    assert (face.asks[-1].arguments["max_tokens"], face.asks[-1].arguments["top_k"]) == (99, 3)
    thinking, text, look_up, add = told.content
    assert thinking.type == "thinking" and thinking.thinking == "Let me see." and thinking.signature
    assert text.type == "text" and text.text == "I look."
    assert look_up.type == add.type == "tool_use" and (look_up.name, look_up.input) == ("look_up", {"q": "a"})
    assert (add.name, add.input, told.stop_reason, told.stop_sequence) == ("add", {}, "tool_use", None)
    assert told.usage.output_tokens == 12 and told.usage.cache_read_input_tokens == 0
    counted = claude.messages.count_tokens(model="agent", messages=HI, system="Be brief.", tools=CLAUDES)
    assert counted.input_tokens == told.usage.input_tokens


def test_a_message_streams_its_events_in_order(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": "agent", "max_tokens": 99, "messages": HI, "tools": CLAUDES}
    with claude.messages.create(**asked, stream=True) as raw:
        kinds = [event.type for event in raw]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    found = [kind for at, kind in enumerate(kinds) if at == 0 or kind != kinds[at - 1]]
    assert found == ["message_start", *block * 4, "message_delta", "message_stop"]
    with claude.messages.stream(**asked) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    whole = claude.messages.create(**asked)
    assert "".join(texts) == "I look."
    without: Any = {"id": True, "usage": {"outpace"}, "content": {"__all__": {"id", "parsed_output"}}}
    assert final.model_dump(exclude=without) == whole.model_dump(exclude=without)


def test_a_message_goes_on_with_what_was_called(claude: anthropic.Anthropic, face: Steps) -> None:
    first = claude.messages.create(model="agent", max_tokens=9, messages=HI, tools=CLAUDES)
    results: Any = [
        {"type": "tool_result", "tool_use_id": first.content[2].id, "content": [{"type": "text", "text": "b"}]},
        {"type": "tool_result", "tool_use_id": first.content[3].id, "content": "c", "is_error": True},
        {"type": "text", "text": "And?"},
    ]
    turns: Any = [*HI, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    claude.messages.create(model="agent", max_tokens=9, messages=turns)
    said = "<user>hi\n<assistant><think>Let me see.</think>I look.<tool_call>a</tool_call><tool_call></tool_call>\n"
    assert face.prompt == f"{said}<tool>b\n<tool>Error: c\n<user>And?\n<assistant>"


def test_a_message_that_is_begun_thinks_stops_or_is_cut(claude: anthropic.Anthropic, face: Steps) -> None:
    begun: Any = [*HI, {"role": "assistant", "content": "Once"}]
    asked: Any = {"model": "agent", "max_tokens": 9}
    face.say([[" upon"]], "length")
    told = claude.messages.create(**asked, messages=begun)
    assert face.prompt == "<user>hi\n<assistant>Once" and told.stop_reason == "max_tokens"
    face.say([["so", "</think>", "Yes"]])
    told = claude.messages.create(**asked, messages=HI, thinking={"type": "enabled", "budget_tokens": 1024})
    assert face.prompt.endswith("<assistant><think>") and [block.type for block in told.content] == ["thinking", "text"]
    face.say([["Yes"]], "stop")
    told = claude.messages.create(**asked, messages=HI, stop_sequences=["END"])
    assert (told.stop_reason, told.stop_sequence) == ("stop_sequence", "END")
    face.say([["<tool_call>{", '"name": "look_up", "arguments": {"q": "a" ', "oops}}</tool_call>"]])
    with claude.messages.stream(**asked, messages=HI, tools=CLAUDES) as stream:
        final = stream.get_final_message()
    whole = claude.messages.create(**asked, messages=HI, tools=CLAUDES)
    for told in (final, whole):  # JSON that breaks off is a call as far as it goes, and nothing of the text is lost
        assert (told.content[0].input, told.content[1].text) == ({"q": "a"}, "oops}}")  # type: ignore[union-attr]


def test_errors_have_anthropics_shape(url: str, claude: anthropic.Anthropic, face: Steps) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(model="nobody", max_tokens=9, messages=HI)
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    for wrong in (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        {"messages": [{"role": "user", "content": 3}]},
        {"messages": []},
        {"max_tokens": 0},
        {"tools": [{"type": "bash_20250124", "name": "bash"}]},
        {"tool_choice": {"type": "any"}},
        {"mcp_servers": [{"url": "x"}]},
        {"output_config": {"effort": 3}},
    ):
        body = {"model": "agent", "max_tokens": 9, "messages": HI, **wrong}
        found = httpx.post(f"{url}/v1/messages", json=body, timeout=PATIENCE_S)
        told = found.json()
        assert (found.status_code, told["type"], told["error"]["type"]) == (400, "error", "invalid_request_error"), told
    face.say([["Once"]], "error")
    with pytest.raises(anthropic.APIStatusError, match="A note"):
        list(claude.messages.create(model="agent", max_tokens=9, messages=HI, stream=True))


# Embeddings


def test_embeddings_in_every_form(client: openai.OpenAI, stories: outpace.LanguageModel) -> None:
    texts = ["Once upon a time", "there was a cat"]
    told = client.embeddings.create(model="stories", input=texts)  # the client asks for base64
    vectors = [item.embedding for item in told.data]
    plain = client.embeddings.create(model="stories", input=texts, encoding_format="float")
    for vector, item in zip(vectors, plain.data, strict=True):
        assert vector == pytest.approx(item.embedding, abs=1e-7) and sum(x * x for x in vector) == pytest.approx(1)
    ids = stories.encode(texts[0])
    assert told.usage.prompt_tokens == len(ids) + len(stories.encode(texts[1]))
    for given in (texts[0], ids, [ids]):
        assert client.embeddings.create(model="stories", input=given).data[0].embedding == vectors[0]  # type: ignore[arg-type]
    last = client.embeddings.create(model="stories", input=texts, extra_body={"outpace": {"pooling": "last"}})
    assert last.data[0].embedding != vectors[0]
    short = (
        client.embeddings.create(model="stories", input=ids, dimensions=8, encoding_format="float").data[0].embedding
    )
    share = sum(x * x for x in vectors[0][:8]) ** 0.5
    assert short == pytest.approx([x / share for x in vectors[0][:8]], abs=1e-6)
    wrong: list[dict[str, Any]] = [{"input": []}, {"input": [""]}, {"dimensions": 10**6}, {"encoding_format": "hex"}]
    for change in [*wrong, {"outpace": {"pooling": "max"}}, {"input": [[10**7]]}]:
        with pytest.raises(openai.BadRequestError):
            client.post("/embeddings", body={"model": "stories", "input": "x", **change}, cast_to=object)


# Metrics


def test_metrics_of_a_real_engine_move(url: str, client: openai.OpenAI) -> None:
    names = ("generation_tokens_total", "request_success_total", "time_to_first_token_seconds_count")
    names += ("request_time_per_output_token_seconds_count", "e2e_request_latency_seconds_count")

    def read() -> dict[str, float]:
        lines = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text.splitlines()
        values = [line.rsplit(" ", 1) for line in lines if 'model_name="stories"' in line and not line.startswith("#")]
        return {
            name: sum(float(value) for label, value in values if label.startswith(f"vllm:{name}{{")) for name in names
        }

    before = read()
    client.completions.create(model="stories", prompt="Once upon a time", max_tokens=20, temperature=0)
    after = read()
    assert {name: after[name] - before[name] for name in names} == dict(zip(names, (20, 1, 1, 1, 1), strict=True))
