"""The official client over a real port: what it gets is what the library writes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest

import outpace

ASKED = [{"role": "user", "content": "Tell me a story."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "feed",
        "parameters": {
            "type": "object",
            "properties": {"animal": {"enum": ["cat", "dog"]}},
            "required": ["animal"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = TOOL["function"]["parameters"]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["stories", "chat", "mask"]
    assert client.models.retrieve("chat").id == "chat"
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.models.retrieve("../stories")


@pytest.mark.parametrize("method", ["autoregressive", "suffix", "auto"])
def test_a_completion_is_the_librarys_text(client: openai.OpenAI, stories: outpace.LanguageModel, method: str) -> None:
    wanted = stories.generate("Once upon a time", max_tokens=24, temperature=0.8, seed=2**62 + 1, num_samples=2)
    settings = {"model": "stories", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0.8, "n": 2}
    settings |= {"seed": 2**62 + 1, "extra_body": {"outpace": {"method": method}}}
    found = client.completions.create(**settings)
    assert [choice.text for choice in found.choices] == [result.text for result in wanted]
    assert [choice.finish_reason for choice in found.choices] == ["length", "length"]
    assert found.usage is not None and found.usage.completion_tokens == 48
    assert found.usage.prompt_tokens == len(wanted[0].prompt_tokens)
    texts, reasons = {0: "", 1: ""}, {}
    for chunk in client.completions.create(**settings, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert [texts[0], texts[1]] == [result.text for result in wanted]
    assert reasons == {0: "length", 1: "length"}


def test_a_conversation_streams_in_openais_order(client: openai.OpenAI, chatty: outpace.LanguageModel) -> None:
    wanted = chatty.chat(ASKED, max_tokens=24, temperature=0.0)
    settings = {"model": "chat", "messages": ASKED, "max_completion_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**settings)
    assert whole.choices[0].message.content == wanted.text
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options=options))
    assert chunks[0].choices[0].delta.role == "assistant" and not chunks[0].choices[0].delta.content
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == wanted.text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == []
    for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert getattr(chunks[-1].usage, count) == getattr(whole.usage, count)
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(counts) == len(chunks) and counts == sorted(counts) and counts[-1] == 24
    assert len({chunk.id for chunk in chunks}) == 1


def test_what_the_cache_holds_of_a_prompt_is_told(client: openai.OpenAI) -> None:
    settings = {"model": "stories", "prompt": "The dog ran and the cat sat. " * 30, "max_tokens": 4, "temperature": 0}
    found = [client.completions.create(**settings, extra_body={"cache_salt": salt}) for salt in ("a", "a", "b")]
    cached = [one.usage.prompt_tokens_details.cached_tokens for one in found]
    assert cached[0] == cached[2] == 0 < cached[1] < found[1].usage.prompt_tokens
    assert found[0].choices == found[1].choices == found[2].choices


def test_a_turn_may_be_gone_on_with_and_templates_get_their_variables(client: openai.OpenAI, url: str) -> None:
    turns = [*ASKED, {"role": "assistant", "content": "Once upon a"}]
    more = {"continue_final_message": True, "add_generation_prompt": False, "chat_template_kwargs": {"voice": "low"}}
    found = client.chat.completions.with_raw_response.create(
        model="chat", messages=turns, max_tokens=3, temperature=0, reasoning_effort="low", extra_body=more
    )
    assert found.parse().choices[0].message.content.startswith(" time")
    assert "voice, reasoning_effort" in found.headers["x-outpace-warning"]


def test_answers_follow_a_schema(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "feed", "schema": SCHEMA}}
    found = client.chat.completions.create(model="chat", messages=ASKED, response_format=form, max_tokens=60)
    assert json.loads(found.choices[0].message.content)["animal"] in ("cat", "dog")
    for asked in ({"choice": ["yes.", "(no)"]}, {"regex": r"yes\.|\(no\)"}, {"grammar": 'root ::= "yes." | "(no)"'}):
        extra = {"structured_outputs": asked}
        answer = client.completions.create(model="stories", prompt="So?", max_tokens=60, extra_body=extra)
        assert answer.choices[0].text in ("yes.", "(no)"), asked


@pytest.mark.parametrize("streams", [False, True])
def test_a_tool_that_has_to_be_called_is(client: openai.OpenAI, streams: bool) -> None:
    settings = {"model": "chat", "messages": ASKED, "tools": [TOOL], "tool_choice": "required", "max_tokens": 200}
    settings |= {"parallel_tool_calls": False, "seed": 1}
    if streams:
        chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**settings, stream=True)]
        parts = [part for choice in chunks for part in choice.delta.tool_calls or []]
        assert [part.id is not None for part in parts] == [True] + [False] * (len(parts) - 1)
        name, text = parts[0].function.name, "".join(part.function.arguments or "" for part in parts)
        reason = chunks[-1].finish_reason
    else:
        choice = client.chat.completions.create(**settings).choices[0]
        name, text = choice.message.tool_calls[0].function.name, choice.message.tool_calls[0].function.arguments
        reason = choice.finish_reason
        assert choice.message.content is None
    assert name == "feed" and json.loads(text)["animal"] in ("cat", "dog") and reason == "tool_calls"


def test_a_tool_may_take_whatever_its_schema_leaves_open(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "array"}}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    found = client.chat.completions.create(
        model="chat", messages=ASKED, tools=[tool], tool_choice="required", max_tokens=8, extra_body={"min_tokens": 8}
    )
    assert found.usage.completion_tokens == 8


def test_log_probabilities_are_the_models(client: openai.OpenAI, stories: outpace.LanguageModel) -> None:
    wanted = stories.generate("Once upon", max_tokens=6, record=["log_probs"], top_log_probs=2)
    settings = {"model": "stories", "prompt": "Once upon", "max_tokens": 6, "temperature": 0, "logprobs": 2}
    found = client.completions.create(**settings).choices[0].logprobs
    assert found.token_logprobs == pytest.approx(wanted.log_probs)
    assert "".join(found.tokens) == wanted.text
    assert found.text_offset == [sum(map(len, found.tokens[:index])) for index in range(6)]
    tops = [sorted(dict(top).values()) for top in wanted.top_log_probs]
    assert [sorted(top.values()) for top in found.top_logprobs] == [pytest.approx(top) for top in tops]


def test_stops_end_a_text_and_may_show(client: openai.OpenAI) -> None:
    settings = {"model": "stories", "prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}
    whole = client.completions.create(**settings).choices[0].text
    stop = whole[20:26]
    before = whole[: whole.index(stop)]
    for shown in (False, True):
        extra = {"include_stop_str_in_output": shown}
        choice = client.completions.create(**settings, stop=["nowhere", stop], extra_body=extra).choices[0]
        assert choice.text == before + (stop if shown else "")
        assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
        chunks = list(client.completions.create(**settings, stop=stop, stream=True, extra_body=extra))
        assert "".join(chunk.choices[0].text for chunk in chunks) == before + (stop if shown else "")


def test_stop_tokens_end_a_text_and_may_show(client: openai.OpenAI, stories: outpace.LanguageModel) -> None:
    settings = {"model": "stories", "prompt": "Once upon a time", "max_tokens": 20, "temperature": 0}
    whole = client.completions.create(**settings, extra_body={"return_token_ids": True}).choices[0]
    token = whole.token_ids[9]
    for shown in (False, True):
        extra = {"stop_token_ids": [token], "include_stop_str_in_output": shown, "return_token_ids": True}
        choice = client.completions.create(**settings, extra_body=extra).choices[0]
        first = whole.token_ids.index(token)
        assert choice.token_ids == whole.token_ids[: first + 1]
        assert (choice.finish_reason, choice.stop_reason) == ("stop", token)
        assert choice.text == stories.tokenizer.decode(whole.token_ids[: first + shown])


def test_gaps_are_filled_on_masked_models(client: openai.OpenAI) -> None:
    settings = {"model": "mask", "prompt": "Once upon a time", "suffix": " and they slept.", "max_tokens": 8}
    found = client.completions.create(**settings, temperature=0)
    streamed = list(client.completions.create(**settings, temperature=0, stream=True))
    assert found.choices[0].text and "".join(it.choices[0].text for it in streamed) == found.choices[0].text
    assert found.usage.completion_tokens == 8
    with pytest.raises(openai.BadRequestError, match="suffix needs a masked model"):
        client.completions.create(**{**settings, "model": "stories"})


@pytest.mark.parametrize("method", ["autoregressive", "prompt-lookup"])
def test_likelihoods_as_lm_eval_asks_for_them(
    client: openai.OpenAI, stories: outpace.LanguageModel, method: str
) -> None:
    texts = ["Once upon a time, there was a cat.", "The dog and the dog and the dog"]
    prompts = [stories.encode(text) for text in texts]
    found = client.completions.create(
        model="stories",
        prompt=prompts,
        echo=True,
        max_tokens=1,
        logprobs=1,
        temperature=0,
        extra_body={"outpace": {"method": method}},
    )
    for choice, ids, text in zip(found.choices, prompts, texts, strict=True):
        told = choice.logprobs
        assert choice.text.startswith(text) and len(told.tokens) == len(ids) + 1
        assert "".join(told.tokens) == choice.text
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
        assert told.token_logprobs[1:-1] == pytest.approx(stories.score(ids).log_probs[1:], abs=2e-2)  # bfloat16
        likeliest = [max(top, key=lambda name: top[name]) for top in told.top_logprobs[1:]]
        assert likeliest[-1] == told.tokens[-1]  # greedy
        assert [len(top) for top in told.top_logprobs[1:]] == [
            1 if name == best else 2 for name, best in zip(told.tokens[1:], likeliest, strict=True)
        ]
    alone = client.completions.create(model="stories", prompt=texts[0], echo=True, max_tokens=0, logprobs=1)
    assert alone.choices[0].text == texts[0] and alone.usage.completion_tokens == 0
    assert alone.choices[0].logprobs.tokens == found.choices[0].logprobs.tokens[:-1]


def test_a_stream_tells_what_the_whole_answer_tells(client: openai.OpenAI) -> None:
    settings = {"model": "chat", "messages": ASKED, "max_tokens": 20, "temperature": 0.9, "seed": 4}
    settings |= {"logprobs": True, "top_logprobs": 2}
    extra = {"return_token_ids": True, "prompt_logprobs": 1, "outpace": {"method": "suffix", "trace": True}}
    whole = client.chat.completions.create(**settings, extra_body=extra).model_dump()
    choice = whole["choices"][0]
    chunks = [
        chunk.model_dump()
        for chunk in client.chat.completions.create(
            **settings, stream=True, extra_body={**extra, "prompt_logprobs": None}
        )
    ]
    parts = [chunk["choices"][0] for chunk in chunks]
    logs = [one for part in parts for one in (part["logprobs"] or {"content": []})["content"]]
    assert logs == choice["logprobs"]["content"] and len(logs) == 20
    assert all(len(one["top_logprobs"]) == 2 and one["logprob"] <= 0 for one in logs)
    assert [token for part in parts for token in part.get("token_ids", ())] == choice["token_ids"]
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert len(whole["prompt_logprobs"]) == len(whole["prompt_token_ids"]) and whole["prompt_logprobs"][0] is None
    ranked = whole["prompt_logprobs"][1]
    assert str(whole["prompt_token_ids"][1]) in ranked and 1 in [one["rank"] for one in ranked.values()]
    traced = [token for part in parts for token in part.get("outpace", {"tokens": []})["tokens"]]
    assert [token["id"] for token in traced] == choice["token_ids"]
    assert "".join(token["text"] for token in traced) == choice["message"]["content"]
    assert {token["source"] for token in traced} <= {"plain", "draft", "recovered", "bonus"}


def test_what_drafting_did_is_told_in_vllms_form(client: openai.OpenAI) -> None:
    settings = {"model": "stories", "prompt": "the cat and the dog, " * 6, "max_tokens": 40, "temperature": 0}
    extra = {"outpace": {"method": "prompt-lookup", "metrics": "detailed"}}
    whole = client.completions.create(**settings, extra_body=extra).model_dump()
    told, spent = whole["metrics"]["speculative_decoding"], whole["usage"]["outpace"]
    assert told["num_draft_tokens"] == spent["drafted"] == sum(told["per_step_drafted"]) > 0
    assert told["num_accepted_draft_tokens"] == spent["accepted"] == sum(told["per_step_accepted"]) > 0
    assert sum(told["acceptance_histogram"]) == told["num_spec_steps"] == len(told["per_step_drafted"])
    assert told["mean_acceptance_length"] == 1 + spent["accepted"] / told["num_spec_steps"]
    plain = client.completions.create(**settings, extra_body={"outpace": {"draft": 0}}).model_dump()
    assert plain["choices"] == whole["choices"] and plain["usage"]["outpace"]["drafted"] == 0
    assert plain["usage"]["outpace"]["forwards"] > spent["forwards"]
    last = list(client.completions.create(**settings, stream=True, extra_body=extra))[-1].model_dump()
    assert last["choices"] == [] and last["metrics"] == whole["metrics"]
