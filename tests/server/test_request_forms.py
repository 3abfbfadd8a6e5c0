"""What measuring tools send, body for body: lm-eval, vllm bench serve and guidellm get what they read."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import outpace
from outpace.doors.lm_eval import score_continuations
from outpace.engine.face import Traits
from outpace.server import asking
from outpace.server.schemas import Extra
from outpace.server.settings import ServerSettings


def _events(http: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with http.stream("POST", path, json=body) as response:
        assert response.status_code == 200, response.read()
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_lm_eval_reads_likelihoods(http: httpx.Client, stories: outpace.LanguageModel) -> None:
    """`local-completions`: prompts as ids, echoed with log-probabilities; what lies between context and end counts."""
    pairs = [("Once upon a", " time"), ("Once upon a", " stone of doom"), ("The dog", " ran home.")]
    ids = [(stories.encode(context), stories.encode(text)) for context, text in pairs]
    body = {"model": "stories", "prompt": [[*context, *text] for context, text in ids], "temperature": 0}
    body |= {"max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    choices = http.post("/v1/completions", json=body).json()["choices"]
    wanted = score_continuations(stories, ids)
    for choice, (context, _), (value, is_greedy) in zip(choices, ids, wanted, strict=True):
        told = choice["logprobs"]
        tokens, tops = (told[name][len(context) : -1] for name in ("token_logprobs", "top_logprobs"))
        assert sum(tokens) == pytest.approx(value, abs=1e-4)
        assert all(token == max(top.values()) for token, top in zip(tokens, tops, strict=True)) == is_greedy


def test_lm_eval_reads_texts(http: httpx.Client, stories: outpace.LanguageModel, chatty: outpace.LanguageModel) -> None:
    asked = {"max_tokens": 24, "temperature": 0, "stop": [".", "<|endoftext|>"], "seed": 1234}
    prompts = [stories.encode(text) for text in ("Once upon a time", "The dog")]
    found = http.post("/v1/completions", json={"prompt": prompts, "model": "stories", **asked}).json()
    wanted = stories.generate(prompts, max_tokens=24, stop=asked["stop"])
    texts = sorted((choice["index"], choice["text"]) for choice in found["choices"])
    assert [text for _, text in texts] == [result.text for result in wanted]
    messages = [{"role": "user", "content": "Tell me a story."}]
    found = http.post("/v1/chat/completions", json={"messages": messages, "model": "chat", **asked}).json()
    said = chatty.chat(messages, max_tokens=24, stop=asked["stop"]).text
    assert found["choices"][0]["message"]["content"] == said


def test_vllm_bench_serve(http: httpx.Client) -> None:
    """Streams with the usage at their end; lengths are fixed by ignore_eos."""
    told = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    body = {"model": "stories", "prompt": "Once upon a time", "repetition_penalty": 1.0, "max_tokens": 20}
    frames = _events(http, "/v1/completions", {**body, "logprobs": None, **told})
    assert frames[-1]["choices"] == [] and frames[-1]["usage"]["completion_tokens"] == 20
    assert "".join(choice["text"] for frame in frames for choice in frame["choices"])
    parts = [{"role": "user", "content": [{"type": "text", "text": "Tell me a story."}]}]
    frames = _events(
        http, "/v1/chat/completions", {"model": "chat", "messages": parts, "max_completion_tokens": 12, **told}
    )
    assert frames[-1]["usage"]["completion_tokens"] == 12
    assert "".join(choice["delta"].get("content") or "" for frame in frames for choice in frame["choices"])


def test_vllm_bench_serve_reads_acceptance(http: httpx.Client) -> None:
    """It takes counters before and after, from lines that begin with vllm:spec_decode."""

    def read() -> dict[str, float]:
        lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith("vllm:spec_decode")]
        names = {"num_drafts", "num_draft_tokens", "num_accepted_tokens"}
        return {
            name: sum(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:spec_decode_{name}_total{{"))
            for name in names
        }

    before = read()
    body = {"model": "stories", "prompt": "The dog ran. The cat ran. The dog ran. The cat", "max_tokens": 30}
    answer = http.post(
        "/v1/completions", json={**body, "temperature": 0, "outpace": {"method": "prompt-lookup"}}
    ).json()
    after = read()
    told = answer["usage"]["outpace"]
    assert after["num_draft_tokens"] - before["num_draft_tokens"] == told["drafted"] > 0
    assert after["num_accepted_tokens"] - before["num_accepted_tokens"] == told["accepted"] > 0
    assert 0 < after["num_drafts"] - before["num_drafts"] <= told["steps"]


def test_guidellm(http: httpx.Client) -> None:
    """It asks for health first, and reads the usage of every piece."""
    assert http.get("/health").status_code == 200
    told = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    body = {"model": "stories", "prompt": "Once upon a time", "max_tokens": 16, "stop": None, "ignore_eos": True}
    frames = _events(http, "/v1/completions", {**body, **told})
    counts = [frame["usage"]["completion_tokens"] for frame in frames]
    assert counts == sorted(counts) and counts[-1] == 16 and len(set(counts)) > 1


def test_beams_are_asked_for_by_the_method(http: httpx.Client, stories: outpace.LanguageModel) -> None:
    """n texts are a search's n best; nothing is drawn, and a temperature is refused."""
    body = {"model": "stories", "prompt": "Once upon a time", "max_tokens": 8, "n": 2}
    body |= {"outpace": {"method": "beam-search", "options": {"beams": 3}}}
    found = http.post("/v1/completions", json=body).json()
    wanted = stories.generate("Once upon a time", method="beam-search", options={"beams": 3, "n_best": 2}, max_tokens=8)
    texts = sorted((choice["index"], choice["text"]) for choice in found["choices"])
    assert [text for _, text in texts] == [result.text for result in wanted]
    frames = _events(http, "/v1/completions", {**body, "stream": True})
    parts = [choice for frame in frames for choice in frame["choices"]]
    assert ["".join(part["text"] for part in parts if part["index"] == at) for at in (0, 1)] == [t for _, t in texts]
    for wrong, word in (({"temperature": 0.7}, "temperature is 0.7"), ({"n": 4}, "n_best is 4")):
        answer = http.post("/v1/completions", json={**body, **wrong})
        assert answer.status_code == 400 and word in answer.json()["error"]["message"]


def test_a_law_by_request(http: httpx.Client, stories: outpace.LanguageModel) -> None:
    """Laws come under our own key; two requests beside each other keep theirs, and no request names a file."""
    body = {"model": "stories", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}
    law = "hmm:keywords=zebra"
    found = http.post("/v1/completions", json={**body, "outpace": {"law": [law], "method": "prompt-lookup"}}).json()
    assert found["choices"][0]["text"] == stories.generate("Once upon a time", max_tokens=24, law=law).text
    assert "zebra" in found["choices"][0]["text"]
    for wrong, why in (("hmm:model=/etc", "may not be named"), ("nothing", "no law"), ("hmm:keywords=a+b,x=1", "x")):
        answer = http.post("/v1/completions", json={**body, "outpace": {"law": [wrong]}})
        assert answer.status_code == 400 and why in answer.json()["error"]["message"]


def test_a_law_in_the_models_place_by_request(http: httpx.Client, stories: outpace.LanguageModel) -> None:
    body = {"model": "stories", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
    law = "cfg:weight=2,negative=One day"
    asked = {**body, "outpace": {"law": [law], "method": "prompt-lookup"}}
    found = http.post("/v1/completions", json=asked).json()["choices"][0]["text"]
    assert found == stories.generate("Once upon a time", max_tokens=12, law=law).text
    frames = _events(http, "/v1/completions", asked | {"stream": True})
    assert "".join(frame["choices"][0]["text"] for frame in frames if frame["choices"]) == found
    plain = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert plain == stories.generate("Once upon a time", max_tokens=12).text != found
    for wrong, why in (
        ("cfg:negative=There was a very big dog who had a friend", "negative prompt has"),
        ("cfg:weight=nan", "weight"),
        ("reward", "names no head"),
        ("plugin:model=stories-draft", "may not be named"),
    ):
        answer = http.post("/v1/completions", json={**body, "outpace": {"law": [wrong]}})
        assert answer.status_code == 400 and why in answer.json()["error"]["message"]


def test_a_healed_prompt_goes_on_inside_its_word(http: httpx.Client) -> None:
    body = {"model": "stories", "prompt": "Once upon a ti", "max_tokens": 4, "temperature": 0}
    (healed,) = http.post("/v1/completions", json=body | {"healed": True}).json()["choices"]
    (cut,) = http.post("/v1/completions", json=body).json()["choices"]
    assert healed["text"].startswith("me") and not cut["text"].startswith("me")
    frames = _events(http, "/v1/completions", body | {"healed": True, "stream": True})
    assert "".join(frame["choices"][0]["text"] for frame in frames if frame["choices"]) == healed["text"]


def test_auto_and_no_drafts_on_a_model_of_one_pass() -> None:
    engine: Any = SimpleNamespace(traits=Traits(name="fast", context=64, vocab_size=9, plain_method="one-pass"))
    asked, settings = [{}, {"draft": 0}, {"draft": 0, "method": "autoregressive"}], ServerSettings()
    found = [asking.method(Extra(**one), engine, settings)["method"] for one in asked]
    assert found == ["one-pass", "one-pass", "autoregressive"]
    engine.traits = Traits(name="left", context=64, vocab_size=9)
    found = [asking.method(Extra(**one), engine, settings)["method"] for one in asked]
    assert found == ["auto", "autoregressive", "autoregressive"]
