"""What is refused, by name and in one shape; what is limited; and what clients that misbehave do to others."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from scripted import PATIENCE_S, Scripted

import outpace
from outpace.engine.face import Busy, Gone
from outpace.errors import ConfigError
from outpace.server.settings import ServerSettings, read_keys
from outpace.text.tokenizer import Tokenizer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
Serve = Callable[..., str]
SAID = [{"role": "user", "content": "Hello."}]


def post(http: httpx.Client, path: str = TEXT, **body: Any) -> httpx.Response:
    asked = {"model": "stories", "prompt": "Once", "max_tokens": 2} if path == TEXT else {"model": "chat"}
    asked |= {"messages": SAID, "max_tokens": 2} if path == CHAT else {}
    return http.post(path, json={**asked, **body})


def refused(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    told = answer.json()["error"]
    assert set(told) == {"message", "type", "param", "code"} and told["message"].endswith((".", "?"))
    assert answer.headers["x-request-id"]
    return told


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (TEXT, "best_of", 2),
        (TEXT, "n", 17),
        (TEXT, "n", 0),
        (TEXT, "max_tokens", 0),
        (TEXT, "max_tokens", -1),
        (TEXT, "max_tokens", "many"),
        (TEXT, "temperature", -0.1),
        (TEXT, "top_p", 1.5),
        (TEXT, "top_k", -2),
        (TEXT, "min_p", 2),
        (TEXT, "seed", 0.5),
        (TEXT, "seed", 2**70),
        (TEXT, "logprobs", 21),
        (TEXT, "min_tokens", 3),
        (TEXT, "repetition_penalty", 0),
        (TEXT, "logit_bias", {"x": 1}),
        (TEXT, "logit_bias", {"99999999": 1}),
        (TEXT, "logit_bias", {str(token): 1 for token in range(1025)}),
        (TEXT, "stop", ""),
        (TEXT, "stop", ["a"] * 33),
        (TEXT, "stop", "a" * 200),
        (TEXT, "stop_token_ids", list(range(33))),
        (TEXT, "bad_words", ["a"] * 129),
        (TEXT, "suffix", "the end"),
        (TEXT, "prompt", []),
        (TEXT, "prompt", ["a"] * 257),
        (TEXT, "prompt", {"text": "a"}),
        (TEXT, "stream_options", {"include_usage": True}),
        (TEXT, "use_beam_search", True),
        (TEXT, "truncate_prompt_tokens", 5),
        (TEXT, "response_format", {"type": "structural_tag"}),
        (TEXT, "response_format", {"type": "json_schema"}),
        (TEXT, "structured_outputs", {"structural_tag": "x"}),
        (TEXT, "structured_outputs", {"choice": []}),
        (TEXT, "structured_outputs", {"regex": "a" * 100_001}),
        (TEXT, "guided_choice", [1]),
        (TEXT, "model", "../stories"),
        (TEXT, "model", "/etc/passwd"),
        (CHAT, "echo", True),
        (CHAT, "top_logprobs", 3),
        (CHAT, "max_tokens", 0),
        (CHAT, "chat_template", "{{ 1 }}"),
        (CHAT, "chat_template_kwargs", {"template": "{{ 1 }}"}),
        (CHAT, "modalities", ["audio"]),
        (CHAT, "functions", [{"name": "f"}]),
        (CHAT, "messages", []),
        (CHAT, "messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]),
        (CHAT, "messages", [{"role": "user", "content": ["Hello.", {"type": "text", "text": 5}]}]),
        (CHAT, "tool_choice", "required"),
    ],
)
def test_what_is_not_served_is_refused_by_name(http: httpx.Client, path: str, field: str, value: object) -> None:
    told = refused(post(http, path, **{field: value}), 404 if field == "model" else 400)
    assert field in (told["param"] or told["message"]).split(".")[0], told


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"method": "nothing"}, "nothing"),
        ({"draft": 0, "method": "suffix"}, "outpace.draft"),
        ({"draft": 4, "method": "auto"}, "outpace.draft"),
        ({"method": "draft-model", "options": {"draft": "/etc"}}, "outpace.options.draft"),
        ({"method": "retrieval", "options": {"index": "../index"}}, "outpace.options.index"),
        ({"method": "prompt-lookup", "options": {"draft_len": 10**9}}, "outpace.options.draft_len"),
        ({"method": "prompt-lookup", "options": {"draft_len": "1e9"}}, "outpace.options.draft_len"),
        ({"method": "prompt-lookup", "options": {"nothing": 1}}, "nothing"),
        ({"other": 1}, "outpace.other"),
    ],
)
def test_our_own_key_is_checked(http: httpx.Client, extra: dict[str, Any], field: str) -> None:
    told = refused(post(http, outpace=extra))
    assert field in f"{told['param']} {told['message']}"


def test_neutral_values_and_null_ask_for_nothing(http: httpx.Client) -> None:
    neutral = {
        "best_of": 1,
        "use_beam_search": False,
        "length_penalty": 1.0,
        "stop": None,
        "logit_bias": {},
        "top_k": -1,
    }
    answer = post(http, **neutral, suffix=None, user="someone", truncate_prompt_tokens=None, temperature=0)
    assert answer.status_code == 200 and "x-outpace-warning" not in answer.headers
    answer = post(http, CHAT, tools=[], functions=[], modalities=["text"], response_format={"type": "text"})
    assert answer.status_code == 200 and "x-outpace-warning" not in answer.headers


def test_unknown_fields_are_named_in_a_header(http: httpx.Client) -> None:
    answer = post(http, **{"frobnicate": 1, "x\r\nset-cookie: é": 2})
    assert answer.status_code == 200
    assert answer.headers["x-outpace-warning"] == "Unknown fields were ignored: frobnicate, x??set-cookie: ?."


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"prompt": NaN}',
        b"[" * 100_000,
        b'{"prompt": "Once", "logit_bias": ' + b'{"5":' * 200 + b"1" + b"}" * 201,
        b'{"prompt": "\\ud800"}',
    ],
    ids=["none", "half", "list", "text", "no-utf8", "nan", "deep", "deep-field", "surrogate"],
)
def test_what_is_no_json_object_is_refused(http: httpx.Client, content: bytes) -> None:
    refused(http.post(TEXT, content=content, headers={"content-type": "application/json"}))


def test_a_form_of_another_site_is_no_request(http: httpx.Client) -> None:
    body = json.dumps({"model": "stories", "prompt": "Once"})
    refused(http.post(TEXT, content=body, headers={"content-type": "text/plain"}))
    headers = {"origin": "http://elsewhere.example"}
    assert refused(http.get("/v1/models", headers=headers), 403)["code"] == "unknown_origin"
    assert http.get("/v1/models", headers={"origin": str(http.base_url)}).status_code == 200


def test_a_prompt_beyond_the_context_is_refused_with_its_length(http: httpx.Client) -> None:
    told = refused(post(http, prompt=[5] * 1500))
    assert told["code"] == "context_length_exceeded" and "1500" in told["message"] and "1024" in told["message"]
    answer = post(http, prompt=[5] * 1020, max_tokens=50)
    assert answer.json()["usage"]["completion_tokens"] <= 4 and "cut to 4" in answer.headers["x-outpace-warning"]


def test_a_million_stop_strings_are_counted_not_searched(http: httpx.Client) -> None:
    told = refused(post(http, stop=["s"] * 1_000_000))
    assert "1000000" in told["message"] and told["param"] == "stop"


def test_a_schema_that_nothing_fulfils_is_refused(http: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 1}}, "required": ["a"]}
    refused(post(http, CHAT, response_format={"type": "json_schema", "json_schema": {"schema": schema}}))


def test_a_body_beyond_the_limit_is_refused_by_its_length(web: httpx.Client, url: str) -> None:
    def parts() -> Any:
        for _ in range(100):
            yield b"x" * (1 << 20)

    headers = {"content-type": "application/json"}
    assert refused(web.post(url + TEXT, content=parts(), headers=headers), 413)
    headers["content-length"] = str(100 << 20)  # as stated, and refused before any of it is there
    with socket.create_connection(address_of(url), PATIENCE_S) as line:
        lines = "\r\n".join(f"{key}: {value}" for key, value in {"host": "localhost", **headers}.items())
        line.sendall(f"POST {TEXT} HTTP/1.1\r\n{lines}\r\n\r\n".encode())
        assert b" 413 " in line.recv(1000)


def address_of(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


def test_half_a_request_is_answered_and_forgotten(web: httpx.Client, serve: Serve) -> None:
    url = serve(Scripted(), body_timeout_s=0.2, max_requests=1)
    with socket.create_connection(address_of(url), PATIENCE_S) as line:
        line.sendall(f"POST {TEXT} HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{{".encode())
        assert b" 408 " in line.recv(1000)
    with socket.create_connection(address_of(url), PATIENCE_S) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nhalf-of-a-hea")
        assert line.recv(1000) == b""  # the server hangs up
    assert web.get(f"{url}/v1/models").status_code == 200


def test_keys_open_what_health_leaves_shut(web: httpx.Client, serve: Serve) -> None:
    url = serve(Scripted(), keys=("first-key", "other-key"))
    assert web.get(f"{url}/health").status_code == 200
    for headers in (
        {},
        {"authorization": "Bearer first-ke"},
        {"authorization": "Bearer first-key2"},
        {"authorization": "first-key"},
        {"authorization": "Basic first-key"},
        {"x-api-key": ""},
        {"x-api-key": "first-keé".encode().decode("latin-1")},
    ):
        answer = web.get(f"{url}/v1/models", headers={k: v.encode("latin-1") for k, v in headers.items()})
        assert refused(answer, 401)["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    for headers in (
        {"authorization": "Bearer other-key"},
        {"x-api-key": "first-key"},
        {"Authorization": "bearer first-key"},
    ):
        assert web.get(f"{url}/v1/models", headers=headers).status_code == 200


def test_anthropics_routes_tell_errors_in_its_shape(web: httpx.Client, serve: Serve) -> None:
    told = web.post(f"{serve(Scripted(), keys=('first-key',))}/v1/messages", json={}).json()
    assert told["type"] == "error" and told["error"]["type"] == "authentication_error" and told["request_id"]


def test_a_server_of_one_name_hears_to_no_other(web: httpx.Client, serve: Serve) -> None:
    url = serve(Scripted(), hosts=("localhost", "127.0.0.1"))
    assert web.get(f"{url}/health").status_code == 200
    assert refused(web.get(f"{url}/health", headers={"host": "rebound.example"}), 403)["code"] == "unknown_host"


def test_pages_that_are_named_may_ask(web: httpx.Client, serve: Serve) -> None:
    url = serve(Scripted(), origins=("http://page.example",))
    headers = {"origin": "http://page.example", "access-control-request-method": "POST"}
    answer = web.options(url + TEXT, headers=headers)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "http://page.example"
    answer = web.options(url + TEXT, headers={**headers, "origin": "http://other.example"})
    assert "access-control-allow-origin" not in answer.headers


# Engines that do not answer, and clients that do not listen


def test_an_engines_refusal_is_told(web: httpx.Client, serve: Serve) -> None:
    face = Scripted()
    url = serve(face)
    for error, status in (
        (Busy("The queue is full.", "Ask again.", retry_s=2.5), 429),
        (Gone("The engine died.", "Ask again."), 503),
        (ConfigError("top_k is 3.", "top_k must be less."), 400),
        (RuntimeError("secret"), 500),
    ):
        face.refuses = error
        for streams in (False, True):
            answer = web.post(url + TEXT, json={"prompt": [1], "stream": streams})
            told = refused(answer, status)
            assert "secret" not in answer.text
            assert answer.headers.get("retry-after") == {429: "3", 503: "5"}.get(status)
            assert (told["param"] == "top_k") == (status == 400)


def test_a_dead_engine_is_no_health(web: httpx.Client, serve: Serve) -> None:
    face = Scripted()
    url = serve(face)
    face.is_alive = False
    told = refused(web.get(f"{url}/health"), 503)
    assert "scripted" in told["message"]


@pytest.mark.parametrize("streams", [False, True])
def test_who_goes_away_is_written_for_no_longer(serve: Serve, streams: bool) -> None:
    face = Scripted(["a "])
    with socket.create_connection(address_of(serve(face)), PATIENCE_S) as line:
        body = json.dumps({"prompt": [1], "stream": streams})
        head = f"POST {TEXT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        line.sendall(f"{head}\r\n\r\n{body}".encode())
        assert face.taken.wait(PATIENCE_S) and not face.cancelled.is_set()
    assert face.cancelled.wait(PATIENCE_S)


def test_a_request_is_aborted_by_its_id(web: httpx.Client, serve: Serve) -> None:
    face = Scripted(["a ", "b "])
    url = serve(face)
    with web.stream(
        "POST", url + TEXT, json={"prompt": [1], "stream": True}, headers={"x-request-id": "mine"}
    ) as answer:
        assert answer.headers["x-request-id"] == "mine"
        lines = answer.iter_lines()
        assert "a " in next(lines)
        assert web.post(f"{url}/v1/requests/mine/abort").json() == {"id": "mine", "aborted": 1}
        assert '"finish_reason":"abort"' in "".join(lines)
    assert refused(web.post(f"{url}/v1/requests/mine/abort"), 404)["code"] == "request_not_found"


def test_two_requests_of_one_id_do_not_end_each_other(web: httpx.Client, serve: Serve) -> None:
    face, name = Scripted(["a "]), {"x-request-id": "same"}
    url = serve(face)
    with web.stream("POST", url + TEXT, json={"prompt": [1], "stream": True}, headers=name) as one:
        lines = one.iter_lines()
        assert "a " in next(lines)
        face.ends = True
        assert web.post(url + TEXT, json={"prompt": [1], "request_id": "same"}).headers["x-request-id"] == "same"
        assert not face.cancelled.is_set()
        assert web.post(f"{url}/v1/requests/same/abort").json()["aborted"] == 1
        assert '"abort"' in "".join(lines)
    assert refused(web.post(url + TEXT, json={"prompt": [1], "request_id": "a b"}))["param"] == "request_id"


def test_a_text_that_takes_too_long_ends(web: httpx.Client, serve: Serve) -> None:
    face = Scripted(["a "])
    url = serve(face, timeout_s=0.2)
    told = refused(web.post(url + TEXT, json={"prompt": [1]}), 408)
    assert told["code"] == "timeout" and face.cancelled.wait(PATIENCE_S)
    streamed = web.post(url + TEXT, json={"prompt": [1], "stream": True}).text
    assert '"code":"timeout"' in streamed and streamed.endswith("data: [DONE]\n\n")


def test_a_silent_stream_pings(web: httpx.Client, serve: Serve) -> None:
    url = serve(Scripted(), ping_s=0.05)
    with web.stream("POST", url + TEXT, json={"prompt": [1], "stream": True}) as answer:
        assert next(line for line in answer.iter_lines() if line) == ": ping"


def test_more_requests_than_allowed_are_told_to_come_again(web: httpx.Client, serve: Serve) -> None:
    face = Scripted()
    url = serve(face, max_requests=1)
    with web.stream("POST", url + TEXT, json={"prompt": [1], "stream": True}):
        answer = web.post(url + TEXT, json={"prompt": [1]})
        assert refused(answer, 429)["code"] == "too_many" and answer.headers["retry-after"] == "1"
        assert web.get(f"{url}/health").status_code == 200
    assert face.cancelled.wait(PATIENCE_S)


def test_a_slow_reader_is_waited_for_and_holds_nobody_up(web: httpx.Client, serve: Serve) -> None:
    face = Scripted(["word " * 2000] * 800, ends=True)  # 8 MB, more than any buffer between the two takes
    url = serve(face)
    with socket.create_connection(address_of(url), PATIENCE_S) as line:
        body = json.dumps({"prompt": [1], "stream": True})
        head = f"POST {TEXT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        line.sendall(f"{head}\r\n\r\n{body}".encode())
        assert face.taken.wait(PATIENCE_S)
        for _ in range(5):
            assert line.recv(1)
            assert web.get(f"{url}/v1/models").status_code == 200
        received = 0
        line.settimeout(PATIENCE_S)
        while received < 8_000_000:
            received += len(line.recv(1 << 20))


def test_a_text_far_too_long_is_not_even_spelled(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokenizer, "encode", lambda *_, **__: pytest.fail("it was spelled"))
    long = "a" * 3_000_000
    told = [refused(post(http, prompt=long)), refused(post(http, CHAT, messages=[{"role": "user", "content": long}]))]
    assert {(it["code"], it["param"]) for it in told} == {
        ("context_length_exceeded", "prompt"),
        ("context_length_exceeded", "messages"),
    }


def test_what_no_sample_can_be_is_refused_in_a_sentence(http: httpx.Client) -> None:
    told = refused(post(http, model="mask", n=2, bad_words=["the"]))
    assert told["code"] == "generation_failed" and "Error" not in told["message"]


def test_a_sample_that_failed_is_no_success(web: httpx.Client, serve: Serve) -> None:
    url = serve(Scripted(["a "], ends=True, finish="error"))
    assert refused(web.post(url + TEXT, json={"prompt": [1]}))["message"] == "A note."
    streamed = web.post(url + TEXT, json={"prompt": [1], "stream": True}).text
    assert '"code":"generation_failed"' in streamed and streamed.endswith("data: [DONE]\n\n")


def test_what_is_asked_reaches_the_engine(web: httpx.Client, serve: Serve) -> None:
    face = Scripted(ends=True)
    url = serve(face, method="suffix")
    body = {"prompt": [1, 2], "priority": -3, "cache_salt": "s", "seed": 2**63, "top_k": -1, "stop_token_ids": [4]}
    body |= {"skip_special_tokens": False, "ignore_eos": True, "prompt_logprobs": 2, "min_p": 0.5, "max_tokens": 9}
    assert web.post(url + TEXT, json=body).status_code != 400
    (ask,) = face.asks
    assert (list(ask.prompt), ask.priority, ask.salt, ask.prompt_log_probs) == ([1, 2], -3, "s", 2)
    wanted = {"seed": 2**63, "top_k": 0, "stop_tokens": [4], "keep_special": True, "ignore_eos": True, "min_p": 0.5}
    wanted |= {"max_tokens": 9, "method": "suffix", "temperature": 1.0, "sampling": "model", "num_samples": 1}
    assert {name: ask.arguments[name] for name in wanted} == wanted
    web.post(url + TEXT, json={"prompt": [1], "outpace": {"draft": 0, "trace": True}})
    web.post(url + TEXT, json={"prompt": [1], "outpace": {"method": "prompt-lookup", "draft": 3}})
    assert face.asks[1].arguments["method"] == "autoregressive" and face.asks[1].is_traced
    assert (face.asks[2].arguments["method"], face.asks[2].arguments["options"]) == ("prompt-lookup", {"draft_len": 3})
    assert face.asks[1].arguments["seed"] != face.asks[2].arguments["seed"]  # without one, every text is its own
    face.traits = replace(face.traits, defaults={"temperature": 0.3, "max_tokens": 7})
    web.post(url + TEXT, json={"prompt": [1]})
    assert "temperature" not in face.asks[3].arguments  # the model's files say it


def test_two_at_once_do_not_mix(http: httpx.Client, stories: outpace.LanguageModel) -> None:
    found: dict[int, str] = {}

    def ask(seed: int) -> None:
        found[seed] = post(http, seed=seed, max_tokens=12).json()["choices"][0]["text"]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    wanted = {seed: stories.generate("Once", seed=seed, max_tokens=12, temperature=1.0).text for seed in range(6)}
    assert found == wanted


def test_keys_are_read_from_a_file(tmp_path: Any) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst-key\n\nother-key\n")
    assert read_keys(file) == ("first-key", "other-key")
    for content in (b"", b"short\n", b"with a space\n", b"\xff\xff", b"# none\n", b"k" * (2 << 20)):
        file.write_bytes(content)
        with pytest.raises(ConfigError):
            read_keys(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="max_samples"):
        ServerSettings(max_samples=0)
